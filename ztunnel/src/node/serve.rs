//! Starting and ending what serves a pod.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use capture::{PodFlags, PodWanted, external};
use enroll::kubernetes::Report;
use enroll::{PodSpec, Sighting, StopReason, Why};
use mesh::Str;
use proxy::{Listeners, Phase, Pod, PodName, PodOptions};
use sys::Netns;

use super::{HANDOVER, Member, Node, Redirection, Serving, lock};
use crate::config::Mode;
use crate::net::{self, PodDns, PodNet, keep_alive, keep_alive_of};

/// Most single ports that a pod may exclude.
const EXCLUDED_PORTS_MAX: usize = 1024;
/// A well-known port is tried this often, as long as the pod's former listeners may still be closing.
const PORT_TRIES_MAX: u32 = 10;
/// Pause between two of these tries.
const PORT_PAUSE: Duration = Duration::from_millis(20);

impl Node {
    /// Starts serving a pod, or serves it with other options; connections that it has go on.
    pub(super) async fn start(&mut self, spec: Arc<PodSpec>) {
        if self.is_superseded() {
            // the successor serves it, or nobody does: this process is not what makes the node ready
            self.not_ready();
            return;
        }
        let uid = spec.uid.clone();
        self.free_ports(&uid);
        match self.open(&spec).await {
            Ok(serving) => {
                self.enrolled(&spec, serving, HANDOVER);
                self.read_back(&uid);
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(pod = %uid, name = %spec.name, namespace = %spec.namespace, error, "pod not enrolled, trying again");
                // what serves already goes on
                let serving = self.members.remove(&uid).and_then(|m| m.serving);
                let member = Member {
                    spec,
                    serving,
                    error: None,
                    fault: None,
                };
                self.members.insert(uid.clone(), member);
                self.not_enrolled(&uid, error);
            }
        }
        self.expect(std::slice::from_ref(&uid));
    }

    /// Ports that are not shared are free only once the pod's present listeners are closed.
    fn free_ports(&self, uid: &str) {
        let Redirection::External(options) = &self.parts.redirection else {
            return;
        };
        let serving = self.members.get(uid).and_then(|m| m.serving.as_ref());
        if let Some(serving) = serving.filter(|_| !options.reuse_port) {
            serving.pod.advance(Phase::Drain);
        }
    }

    /// A pod does not stand as it should.
    pub(super) fn not_enrolled(&mut self, uid: &Str, reason: String) {
        if let Some(member) = self.members.get_mut(uid) {
            member.error = Some(reason.clone());
        }
        self.report(uid, Report::Pending { reason });
    }

    /// Takes a pod in that serves now. Listeners that it had before close after `grace`.
    pub(super) fn enrolled(&mut self, spec: &Arc<PodSpec>, serving: Serving, grace: Duration) {
        let uid = &spec.uid;
        tracing::info!(pod = %uid, name = %spec.name, namespace = %spec.namespace, "pod enrolled");
        self.parts.metrics.started.add(1);
        let member = Member {
            spec: Arc::clone(spec),
            serving: Some(serving),
            error: None,
            fault: None,
        };
        let before = self.members.insert(uid.clone(), member);
        if let Some(before) = before.and_then(|m| m.serving) {
            self.parts.metrics.stopped.add(1);
            // connections half-way into the old listeners are still taken
            self.let_go(uid.clone(), before, grace);
        }
        self.refresh_identities();
    }

    /// Sockets first, then capture: connections that capture brings find an open door.
    pub(super) async fn open(&mut self, spec: &PodSpec) -> anyhow::Result<Serving> {
        let netns = match &spec.netns_handle {
            Some(handle) => Arc::clone(&handle.0),
            None => Netns::open(&spec.netns)
                .with_context(|| format!("network namespace {}", spec.netns.display()))?
                .into(),
        };
        let cookie = netns.cookie();
        let who = PodName {
            uid: spec.uid.clone(),
            name: spec.name.clone(),
            namespace: spec.namespace.clone(),
            service_account: spec.service_account.clone(),
        };
        let (listeners, net) = match self.parts.redirection.clone() {
            Redirection::Ebpf(_) => self.open_captured(spec, &netns)?,
            Redirection::External(options) => self.open_external(spec, &netns, options).await?,
        };
        let options = PodOptions {
            keep_source: self.parts.config.capture.keep_source,
            dns: self.captures_dns(spec),
        };
        let pod = Pod::new(who, options, Arc::new(net));
        self.parts.shards.serve(Arc::clone(&pod), listeners).await;
        Ok(Serving { pod, cookie })
    }

    /// Our kernel programs bring connections to sockets on any port.
    fn open_captured(
        &mut self,
        spec: &PodSpec,
        netns: &Arc<Netns>,
    ) -> anyhow::Result<(Listeners, PodNet)> {
        let flags = PodFlags {
            dns: self.captures_dns(spec),
            bypass_inbound: spec.capture.bypass_inbound,
        };
        let ports: Vec<u16> = spec
            .capture
            .exclude_ports
            .iter()
            .cloned()
            .flatten()
            .take(EXCLUDED_PORTS_MAX + 1)
            .collect();
        ensure!(
            ports.len() <= EXCLUDED_PORTS_MAX,
            "more than {EXCLUDED_PORTS_MAX} excluded ports"
        );
        let keepalive = &self.parts.config.keepalive;
        let sockets = capture::sockets::open(netns, flags).context("open sockets in the pod")?;
        keep_alive(&sockets, keepalive).context("keepalive of the pod's listeners")?;
        let socks = if self.parts.config.socks5 {
            let listener =
                capture::sockets::open_socks(netns).context("open sockets in the pod")?;
            keep_alive_of(&listener, keepalive).context("keepalive of the pod's listeners")?;
            Some(listener)
        } else {
            None
        };
        let wanted = PodWanted {
            uid: spec.uid.to_string(),
            netns: Arc::clone(netns),
            netns_path: spec.netns.clone(),
            cgroup: spec.cgroup.clone(),
            exclude_ranges: spec.capture.exclude_cidrs.clone(),
            exclude_ports: ports,
            open_ports: self.open_ports(),
            flags,
        };
        if let Redirection::Ebpf(capture) = &self.parts.redirection {
            lock(capture).enroll(&wanted, &sockets)?;
        }
        if let Err(error) = self.monitor.watch(netns) {
            tracing::warn!(pod = %spec.uid, %error, "changes in the pod's namespace are seen at intervals only");
        }
        let net = PodNet::new(Arc::clone(netns), keepalive).behind(&sockets)?;
        let listeners = Listeners {
            outbound: Some(sockets.outbound),
            hbone: Some(sockets.hbone),
            plaintext: Some(sockets.plaintext),
            socks,
            dns: sockets
                .dns
                .map(|dns| Box::new(PodDns(dns)) as _)
                .into_iter()
                .collect(),
            dns_tcp: Vec::new(),
        };
        Ok((listeners, net))
    }

    /// Where the daemon itself is in the namespace that it captures, its own endpoints stay reachable.
    fn open_ports(&self) -> Vec<u16> {
        let config = &self.parts.config;
        match config.mode {
            Mode::Shared => Vec::new(),
            Mode::Dedicated(_) => vec![config.stats_port, config.readiness_port],
        }
    }

    fn captures_dns(&self, spec: &PodSpec) -> bool {
        spec.capture
            .dns_capture
            .unwrap_or(self.parts.config.capture.dns)
    }

    /// Others bring connections to well-known ports.
    async fn open_external(
        &mut self,
        spec: &PodSpec,
        netns: &Arc<Netns>,
        mut options: external::Options,
    ) -> anyhow::Result<(Listeners, PodNet)> {
        options.dns = self.captures_dns(spec);
        options.socks = self.parts.config.socks5;
        let mut tries = 1;
        let sockets = loop {
            if let Some(early) = self.parts.early.take() {
                break early;
            }
            match external::open(netns, &options) {
                Err(error)
                    if error.kind() == std::io::ErrorKind::AddrInUse && tries < PORT_TRIES_MAX =>
                {
                    tries += 1;
                    tokio::time::sleep(PORT_PAUSE).await;
                }
                opened => break opened.context("open sockets in the pod")?,
            }
        };
        net::external(sockets, netns, &options, &self.parts.config)
    }

    /// Ends a pod's stay. One that left the mesh keeps its connections; one that is replaced stays closed until its
    /// start, which follows, takes its capture over.
    pub(super) fn stop(&mut self, spec: &PodSpec, reason: StopReason) {
        let Some(member) = self.members.remove(&spec.uid) else {
            return;
        };
        tracing::info!(pod = %spec.uid, name = %spec.name, namespace = %spec.namespace, ?reason, "pod un-enrolled");
        // its place is sought again: it stays captured, and so closed
        let stays = matches!(
            reason,
            StopReason::Replaced | StopReason::Left(Why::PlaceUnknown)
        );
        if !stays {
            self.report(&spec.uid, Report::Left);
        }
        let Some(serving) = member.serving else {
            return;
        };
        self.parts.metrics.stopped.add(1);
        self.refresh_identities();
        // a successor undoes the pod's routes without knowing of connections here, so they would hang
        let superseded = self.is_superseded();
        if superseded || stays || !matches!(reason, StopReason::Left(_)) {
            serving.pod.advance(Phase::Cut);
        }
        if !superseded
            && !stays
            && let Some(Err(error)) = self.capture().map(|mut c| c.retire(serving.cookie))
        {
            tracing::error!(pod = %spec.uid, %error, "capture of new connections could not be switched off");
        }
        self.let_go(spec.uid.clone(), serving, Duration::ZERO);
    }

    /// Keeps track of what no longer serves until its last connection has ended. Its listeners close after `grace`.
    pub(super) fn let_go(&mut self, uid: Str, serving: Serving, grace: Duration) {
        let (pod, ended) = (Arc::clone(&serving.pod), self.ended.0.clone());
        if grace.is_zero() {
            pod.advance(Phase::Drain);
        }
        self.leaving.push((uid, serving));
        tokio::task::spawn_local(async move {
            tokio::time::sleep(grace).await;
            pod.advance(Phase::Drain);
            pod.idle().await;
            // the receiver is gone when the process ends, which leaves capture in place
            let _ = ended.send(());
        });
    }

    /// Undoes what is left of those that were let go and whose last connection has ended.
    pub(super) fn settle(&mut self) {
        let superseded = self.is_superseded();
        let (done, open) = std::mem::take(&mut self.leaving)
            .into_iter()
            .partition(|(uid, s): &(Str, Serving)| s.pod.is_idle() && !self.awaits_start(uid));
        self.leaving = open;
        for (uid, serving) in done {
            let cookie = serving.cookie;
            let same = |s: &Serving| s.cookie == cookie;
            let needed = self.leaving.iter().any(|(_, s)| same(s))
                || self
                    .members
                    .values()
                    .any(|m| m.serving.as_ref().is_some_and(same));
            if !needed {
                self.monitor.unwatch(cookie);
                if let Some(repair) = &mut self.repair {
                    repair.forget(cookie);
                }
            }
            if !needed
                && !superseded
                && let Some(Err(error)) = self.capture().map(|mut c| c.release(cookie))
            {
                tracing::error!(pod = %uid, %error, "capture could not be undone wholly, trying again");
            }
            let (shards, serial) = (Arc::clone(&self.parts.shards), serving.pod.serial());
            tokio::task::spawn_local(async move { shards.forget(serial).await });
        }
    }

    /// Whether a pod is in the mesh and does not serve yet: what captures it must stay, so that it stays closed.
    pub(super) fn awaits_start(&self, uid: &str) -> bool {
        let expected = match self.roster.pod(uid) {
            Some(Sighting::In(_)) => true,
            Some(Sighting::Out(pod)) => pod.why == Why::PlaceUnknown,
            None => false,
        };
        expected && self.members.get(uid).is_none_or(|m| m.error.is_some())
    }
}
