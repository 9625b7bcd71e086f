//! The effective configuration as the dump and the log show it. Tokens, header values and inline PEM are left out.

use std::time::Duration;

use control::channel::{Config as Server, Roots};
use serde_json::{Value, json};

use super::{Ca, Config, DnsAddress, Enroll, HoldPolicy, Local, LogFormat, Redirect};

/// All settings as one JSON object, keys as in Istio's dump, further ones in the same manner.
pub fn settings(c: &Config) -> Value {
    let mut all = mesh(c);
    for part in [control_plane(c), data_plane(c), enrolment(c)] {
        if let (Value::Object(all), Value::Object(part)) = (&mut all, part) {
            all.extend(part);
        }
    }
    all
}

fn mesh(c: &Config) -> Value {
    let own = c.own.as_ref();
    json!({
        "network": c.network,
        "clusterId": c.cluster_id,
        "clusterDomain": c.cluster_domain,
        "localNode": c.node_name.as_deref().unwrap_or_default(),
        "preferedServiceNamespace": c.preferred_namespace,
        "ztunnelIdentity": own.map(|own| own.identity.to_string()),
        "ztunnelWorkload": own.map(|own| json!({
            "name": own.name,
            "namespace": own.identity.namespace(),
            "serviceAccount": own.identity.service_account(),
        })),
        "proxyMode": if c.mode.member().is_some() { "Dedicated" } else { "Shared" },
        "proxyWorkloadInformation": c.mode.member().map(|member| json!({
            "name": member.name,
            "namespace": member.namespace,
            "serviceAccount": member.service_account,
        })),
        "proxyMetadata": c.node.metadata,
        "proxyArgs": c.arguments.join(" "),
        "numWorkerThreads": c.threads,
        "selfTerminationDeadline": span(c.drain_deadline),
        "logFormat": if c.log_format == LogFormat::Json { "json" } else { "plain" },
        "logFilter": c.log_filter,
        "authzPolicyInfoLogging": c.policy_info,
    })
}

fn control_plane(c: &Config) -> Value {
    let xds = c.xds.as_ref().map(|xds| &xds.server);
    let (ca, embedded): (Option<&Server>, _) = match &c.ca {
        Ca::Istio(server) => (Some(server), None),
        Ca::Embedded(directory) => (None, Some(directory)),
    };
    let names = |server: Option<&Server>| -> Vec<[String; 2]> {
        let headers = server.map(|server| server.headers.as_slice());
        let masked = |(name, _): &(String, _)| [name.clone(), "[redacted]".to_owned()];
        headers.unwrap_or_default().iter().map(masked).collect()
    };
    json!({
        "xdsAddress": xds.map(|s| &s.address),
        "xdsRootCert": xds.map(|s| roots(&s.roots)),
        "altXdsHostname": xds.and_then(|s| s.alternative_name.as_ref()),
        "xdsHeaders": names(xds),
        "xdsOnDemand": c.xds.as_ref().is_some_and(|xds| xds.on_demand),
        "caAddress": ca.map(|s| &s.address),
        "caRootCert": ca.map(|s| roots(&s.roots)),
        "altCaHostname": ca.and_then(|s| s.alternative_name.as_ref()),
        "caHeaders": names(ca),
        "embeddedCaDir": embedded,
        "fakeCa": false,
        "secretTtl": span(c.secret_ttl),
        "crlPath": c.crl_path,
        "localXdsPath": match &c.local { Some(Local::File(path)) => Some(path), _ => None },
        "localXdsInline": matches!(c.local, Some(Local::Inline(_))),
        "tls12Enabled": c.tls12,
        "postQuantumOnly": c.post_quantum_only,
    })
}

fn roots(roots: &Roots) -> Value {
    match roots {
        Roots::File(path) => json!({"File": path}),
        Roots::System => json!("Default"),
        Roots::Inline(pem) => json!({"Static": format!("{} bytes", pem.len())}),
    }
}

fn data_plane(c: &Config) -> Value {
    let v6 = c.capture.ipv6;
    let any = if v6 { "[::]" } else { "0.0.0.0" };
    let (mark, reuse) = match c.capture.redirect {
        Redirect::Ebpf => (Some(capture::DAEMON_MARK), true),
        Redirect::External { mark, reuse_port } => (mark, reuse_port),
    };
    let illegal: &[u16] = if c.socks5 {
        &[15001, 15006, 15008, 15080]
    } else {
        &[15001, 15006, 15008]
    };
    json!({
        "adminAddr": {"Localhost": [v6, c.admin_port]},
        "statsAddr": {"SocketAddr": format!("{any}:{}", c.stats_port)},
        "readinessAddr": {"SocketAddr": format!("{any}:{}", c.readiness_port)},
        "inboundAddr": format!("{any}:15008"),
        "inboundPlaintextAddr": format!("{any}:15006"),
        "outboundAddr": format!("{any}:15001"),
        "dnsProxyAddr": match c.capture.dns_address {
            DnsAddress::Localhost(port) => json!({"Localhost": [v6, port]}),
            DnsAddress::At(address) => json!({"SocketAddr": address.to_string()}),
        },
        "socks5Addr": c.socks5.then_some("127.0.0.1:15080"),
        "illegalPorts": illegal,
        "proxy": true,
        "dnsProxy": c.capture.dns,
        "ipv6Enabled": v6,
        "requireOriginalSource": c.capture.keep_source,
        "packetMark": mark,
        "inpodPortReuse": reuse,
        "fakeSelfInbound": false,
        "localhostAppTunnel": c.localhost_app_tunnel,
        "enableEnhancedBaggage": c.response_baggage,
        "windowSize": c.http2.stream_window,
        "connectionWindowSize": c.http2.connection_window,
        "frameSize": c.http2.frame_size,
        "poolMaxStreamsPerConn": c.http2.pool_max_streams,
        "poolUnusedReleaseTimeout": span(c.http2.pool_idle),
        "socketConfig": {
            "keepaliveEnabled": c.keepalive.enabled,
            "keepaliveTime": span(c.keepalive.time),
            "keepaliveInterval": span(c.keepalive.interval),
            "keepaliveRetries": c.keepalive.retries,
            "userTimeoutEnabled": c.keepalive.user_timeout,
        },
    })
}

fn enrolment(c: &Config) -> Value {
    let (file, socket, strict) = match &c.enroll {
        Enroll::File(path) => (Some(path), None, false),
        Enroll::Zds {
            socket,
            strict_exit,
        } => (None, Some(socket), *strict_exit),
        Enroll::Kubernetes { .. } | Enroll::Own => (None, None, false),
    };
    let hold = c.capture.hold.map(|hold| {
        json!({
            "timeout": span(hold.timeout),
            "policy": match hold.policy { HoldPolicy::Deny => "deny", HoldPolicy::Allow => "allow" },
        })
    });
    json!({
        "enroll": c.enroll.name(),
        "enrollFile": file,
        "enrollExcludeNamespaces": c.excluded_namespaces,
        "capture": c.capture.redirect.name(),
        "captureCgroup": c.capture.cgroup,
        "capturePinPath": c.capture.pins,
        "captureExemptSources": c.capture.exempt_sources,
        "captureReconcileInterval": span(c.capture.reconcile),
        "hold": hold,
        "hostProc": c.capture.host_proc,
        "kubeletCgroup": c.capture.kubelet_cgroup,
        "inpodUds": socket.map(|path| path.display().to_string()).unwrap_or_default(),
        "zdsStrictExit": strict,
    })
}

fn span(duration: Duration) -> Value {
    json!({"secs": duration.as_secs(), "nanos": duration.subsec_nanos()})
}
