//! The root is replaced under two nodes that renew at their own pace: old, both trusted, new leaf, new only. Every pair of
//! neighbouring steps gets along in both directions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use identity::{Certs, Config, Credential, IssueError, Issued, Issuer, Issuing, csr};
use mesh::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DnType,
    IsCa, KeyPair, KeyUsagePurpose,
};
use tokio::time::sleep;

use crate::certs::{HOUR, wall};
use crate::handshake::connect;
use crate::pki::{BOTH_ENDS, td};

/// Which root signs, and which are trusted.
const STEPS: [(usize, &[usize]); 4] = [(0, &[0]), (0, &[0, 1]), (1, &[0, 1]), (1, &[1])];
/// A leaf is renewed within this time.
const RENEWED: Duration = Duration::from_secs(31 * 60);

struct Roots([CertifiedIssuer<'static, KeyPair>; 2]);

impl Roots {
    fn new() -> Arc<Self> {
        Arc::new(Self(["old", "new"].map(|name| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
            CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
        })))
    }
}

/// One node's authority: the same two roots, at a step of its own.
struct Rotating {
    roots: Arc<Roots>,
    step: AtomicUsize,
}

impl Rotating {
    /// Answers a signing request as an authority over a wire does.
    fn answer(&self, request: &csr::Request) -> Vec<String> {
        let (signs, trusted) = STEPS[self.step.load(Ordering::Relaxed)];
        let mut asked = CertificateSigningRequestParams::from_pem(request.pem()).unwrap();
        let since = wall().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let epoch = rcgen::date_time_ymd(1970, 1, 1);
        // renewed half an hour from now at the latest, and valid on the real clock as well, which the handshakes read
        asked.params.not_before = epoch + (since - 4 * HOUR);
        asked.params.not_after = epoch + (since + 5 * HOUR);
        asked.params.extended_key_usages = BOTH_ENDS.to_vec();
        let leaf = asked.signed_by(&self.roots.0[signs]).unwrap().pem();
        let bundle = trusted.iter().map(|at| self.roots.0[*at].pem()).collect();
        vec![leaf, bundle]
    }
}

impl Issuer for Rotating {
    fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a> {
        Box::pin(async move {
            let request = csr::Request::new(id)?;
            let answer = self.answer(&request);
            request.finish(answer)
        })
    }
}

struct Node {
    issuer: Arc<Rotating>,
    certs: Certs,
    id: SpiffeId,
}

impl Node {
    fn new(roots: &Arc<Roots>, account: &str) -> Self {
        wall(); // starts the thread's clock
        let issuer = Arc::new(Rotating {
            roots: Arc::clone(roots),
            step: AtomicUsize::new(0),
        });
        let config = Config {
            wall,
            ..Config::default()
        };
        Self {
            certs: Certs::spawn(Arc::<Rotating>::clone(&issuer), config),
            issuer,
            id: td(account),
        }
    }

    async fn credential(&self) -> Arc<Credential> {
        self.certs.get(&self.id).await.unwrap()
    }

    /// Moves on and waits for the renewal.
    async fn reach(&self, step: usize) {
        self.issuer.step.store(step, Ordering::Relaxed);
        sleep(RENEWED).await;
        let roots = self.credential().await.roots().len();
        assert_eq!(roots, STEPS[step].1.len(), "renewed");
    }
}

async fn gets_along(from: &Node, to: &Node) -> bool {
    let (client, server) = (from.credential().await, to.credential().await);
    let config = client.client_config(std::slice::from_ref(&to.id));
    let ends = connect(config, server.server_config()).await;
    assert_eq!(ends.0.is_ok(), ends.1.is_ok());
    ends.0.is_ok()
}

#[tokio::test(start_paused = true)]
async fn neighbouring_steps_of_a_rotation_get_along() {
    let roots = Roots::new();
    let (one, two) = (Node::new(&roots, "one"), Node::new(&roots, "two"));
    assert!(gets_along(&one, &two).await);
    for step in 1..STEPS.len() {
        for node in [&one, &two] {
            node.reach(step).await;
            assert!(gets_along(&one, &two).await, "step {step}");
            assert!(gets_along(&two, &one).await, "step {step}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_skipped_step_does_not_get_along() {
    let roots = Roots::new();
    let (one, two) = (Node::new(&roots, "one"), Node::new(&roots, "two"));
    assert!(gets_along(&one, &two).await);
    one.reach(2).await; // a leaf of the new root, which two does not know yet
    assert!(!gets_along(&one, &two).await);
}

#[tokio::test]
async fn an_authority_without_a_root_gives_no_certificate() {
    struct Rootless(Rotating);
    impl Issuer for Rootless {
        fn issue<'a>(&'a self, id: &'a SpiffeId) -> Issuing<'a> {
            let made = || -> Result<Issued, IssueError> {
                let request = csr::Request::new(id)?;
                let mut answer = self.0.answer(&request);
                answer.pop();
                request.finish(answer)
            };
            let made = made();
            Box::pin(async move { made })
        }
    }
    let issuer = Rootless(Rotating {
        roots: Roots::new(),
        step: AtomicUsize::new(0),
    });
    let certs = Certs::spawn(Arc::new(issuer), Config::default());
    let why = certs.get(&td("a")).await.expect_err("no root").to_string();
    assert_eq!(
        why,
        "no usable root came with the certificate for: spiffe://td/ns/ns/sa/a"
    );
    assert_eq!(certs.dump()[0].state, format!("Unavailable: {why}"));
}
