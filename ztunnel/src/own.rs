//! The daemon's own pod: HBONE on port 15008 of the daemon's own network namespace, so that captured clients reach its
//! metrics and readiness through the mesh.
//!
//! Served as any pod's inbound side is, under the workload that the control plane has for it. Its capture is nobody's: it
//! has none. Plaintext to the same ports is left as it is.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow};
use capture::external::{HBONE_PORT, wildcard};
use mesh::{Index, SpiffeId};
use proxy::{Listeners, Phase, Pod, PodName, PodOptions, Shards};
use sys::Netns;
use sys::socket::{ListenOptions, listen};
use tokio::sync::watch;

use crate::config::{Config, Mode, Own};
use crate::net::PodNet;
use crate::node::{State, View};

/// What is cut has this long to notice.
const CUT_WAIT: Duration = Duration::from_secs(1);

/// The daemon's own pod as the dump shows it.
#[derive(Clone)]
pub struct Seen {
    pod: Arc<Pod>,
    serves: Arc<AtomicBool>,
}

impl Seen {
    /// The name under which its flows run, and how it stands.
    pub fn view(&self) -> (&str, View) {
        let pod = &self.pod;
        let state = if *pod.phase().borrow() != Phase::Serve {
            State::Leaving
        } else if self.serves.load(Ordering::Relaxed) {
            State::Up
        } else {
            State::Pending("the control plane has not said yet what the mesh is".to_owned())
        };
        let view = View {
            name: pod.name.clone(),
            namespace: pod.namespace.clone(),
            service_account: pod.service_account.clone(),
            state,
            held: None,
        };
        (&pod.uid, view)
    }
}

/// The daemon's own pod, with its port bound.
pub struct OwnPod {
    seen: Seen,
    listener: TcpListener,
}

impl OwnPod {
    /// Binds the port, when the daemon serves a node and knows which pod it is itself. Who connects waits until
    /// [`OwnPod::serve`].
    ///
    /// Errors: the port is taken, or the kernel's refusal.
    pub fn bind(config: &Config) -> anyhow::Result<Option<Self>> {
        let (Some(own), Mode::Shared) = (&config.own, &config.mode) else {
            return Ok(None);
        };
        let any = wildcard(config.capture.ipv6).context("own HBONE listener")?;
        let listener = bind(SocketAddr::new(any, HBONE_PORT))?;
        let netns = Netns::current().context("the daemon's own network namespace")?;
        let net = PodNet::own(Arc::new(netns), &config.keepalive);
        let pod = Pod::new(name(own), PodOptions::default(), Arc::new(net));
        let seen = Seen {
            pod,
            serves: Arc::default(),
        };
        Ok(Some(Self { seen, listener }))
    }

    /// For the dump.
    pub fn seen(&self) -> Seen {
        self.seen.clone()
    }

    /// Serves from now on: what the mesh is must be known. The answer is ready once all is over, which it is soon after
    /// `stop`, within `deadline`.
    pub async fn serve(
        self,
        shards: &Shards,
        mut stop: watch::Receiver<bool>,
        deadline: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let Self { seen, listener } = self;
        let hbone = Listeners {
            hbone: Some(listener),
            ..Listeners::default()
        };
        shards.serve(Arc::clone(&seen.pod), hbone).await;
        seen.serves.store(true, Ordering::Relaxed);
        async move {
            // an error means that nobody can stop us any more, which is the end as well
            let _ = stop.wait_for(|stop| *stop).await;
            end(&seen.pod, deadline).await;
        }
    }
}

/// Listener first, then what is open has until `deadline`.
async fn end(pod: &Pod, deadline: Duration) {
    pod.advance(Phase::Drain);
    if tokio::time::timeout(deadline, pod.idle()).await.is_err() {
        pod.advance(Phase::Cut);
        let _ = tokio::time::timeout(CUT_WAIT, pod.idle()).await;
    }
}

/// The identity that the daemon's own pod has in the mesh; none = the mesh does not know it (yet), or there is no such pod.
pub fn identity(config: &Config, index: &Index) -> Option<SpiffeId> {
    let own = config
        .own
        .as_ref()
        .filter(|_| config.mode == Mode::Shared)?;
    let id = &own.identity;
    let workload = index.local_workload(id.namespace(), &own.name, id.service_account());
    workload.map(|workload| workload.identity())
}

/// The port is not shared: who else has it is another daemon in this namespace, or not of the mesh at all.
fn bind(at: SocketAddr) -> anyhow::Result<TcpListener> {
    listen(at, &ListenOptions::default()).map_err(|error| {
        let hint = if error.kind() == io::ErrorKind::AddrInUse {
            ": another process of this network namespace has the port; end it, or unset POD_NAME, POD_NAMESPACE or SERVICE_ACCOUNT to do without the daemon's own listener"
        } else {
            ""
        };
        anyhow!("own HBONE listener: listen on {at}: {error}{hint}")
    })
}

fn name(own: &Own) -> PodName {
    let (name, namespace) = (own.name.as_str(), own.identity.namespace());
    PodName {
        // no other pod's: theirs are of Kubernetes, which has no slash in them
        uid: format!("{namespace}/{name}").into(),
        name: name.into(),
        namespace: namespace.into(),
        service_account: own.identity.service_account().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_told_as_that() {
        let first = bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let at = first.local_addr().unwrap();
        let error = bind(at).unwrap_err().to_string();
        assert!(
            error.contains(&at.to_string()) && error.contains("POD_NAME"),
            "{error}"
        );
    }
}
