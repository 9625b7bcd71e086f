//! Certificates that were taken back: at handshakes, over open tunnels, and lists that say nothing about them.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use identity::{Config, Credential, Crl, CrlError, Issued, Key, Side, Watch};
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
    date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::handshake::{Ends, connect};
use crate::pki::{BOTH_ENDS, td};

const REVOKED: &str = "invalid peer certificate: Revoked";

/// An authority whose certificate has this serial number.
struct Authority(CertifiedIssuer<'static, KeyPair>);

fn params(name: &str, serial: u64) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(SerialNumber::from(serial));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

impl Authority {
    fn root(name: &str) -> Self {
        Self(CertifiedIssuer::self_signed(params(name, 1), key()).unwrap())
    }

    fn below(&self, name: &str, serial: u64) -> Self {
        Self(CertifiedIssuer::signed_by(params(name, serial), key(), &self.0).unwrap())
    }

    /// The same authority, its certificate signed by another one.
    fn crossed(&self, name: &str, serial: u64, by: &Self) -> CertificateDer<'static> {
        let cert = params(name, serial).signed_by(self.0.key(), &by.0).unwrap();
        cert.der().clone()
    }

    fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    /// A leaf that is presented with `above`.
    fn leaf(
        &self,
        account: &str,
        serial: u64,
        above: &[CertificateDer<'static>],
        roots: &[&Self],
    ) -> Issued {
        let mut params = CertificateParams::default();
        let uri = Ia5String::try_from(td(account).to_string()).unwrap();
        params.subject_alt_names = vec![SanType::URI(uri)];
        params.serial_number = Some(SerialNumber::from(serial));
        params.extended_key_usages = BOTH_ENDS.to_vec();
        let pair = key();
        let leaf = params.signed_by(&pair, &self.0).unwrap().der().clone();
        Issued {
            chain: std::iter::once(leaf).chain(above.iter().cloned()).collect(),
            roots: roots.iter().map(|root| root.der()).collect(),
            key: Key::new(PrivatePkcs8KeyDer::from(pair.serialize_der()).into()),
        }
    }

    /// A list of these serial numbers, in PEM.
    fn list(&self, serials: &[u64]) -> String {
        self.list_until(serials, 2100)
    }

    fn list_until(&self, serials: &[u64], year: i32) -> String {
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2020, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        }
        .signed_by(&self.0)
        .unwrap()
        .pem()
        .unwrap()
    }
}

fn credential(issued: Issued, account: &str, crl: &Crl) -> Credential {
    let config = Config {
        crl: Some(crl.clone()),
        ..Config::default()
    };
    Credential::with(&td(account), issued, &config).unwrap()
}

/// Two workloads below one intermediate (serial 2), which is below one root. Leaves: web 10, cart 20.
struct World {
    root: Authority,
    middle: Authority,
    web: Credential,
    cart: Credential,
    /// Of web and of cart.
    crls: [Crl; 2],
}

impl World {
    fn new() -> Self {
        let root = Authority::root("root");
        let middle = root.below("middle", 2);
        let crls = [Crl::new(), Crl::new()];
        let leaf = |account, serial, crl| {
            credential(
                middle.leaf(account, serial, &[middle.der()], &[&root]),
                account,
                crl,
            )
        };
        Self {
            web: leaf("web", 10, &crls[0]),
            cart: leaf("cart", 20, &crls[1]),
            root,
            middle,
            crls,
        }
    }

    fn load(&self, file: &str) {
        for crl in &self.crls {
            crl.load(file.as_bytes()).unwrap();
        }
    }

    /// web connects to cart.
    async fn connect(&self) -> Ends {
        between(&self.web, &self.cart).await
    }

    /// The tunnel as each end watches it.
    fn watch(&self) -> [Watch; 2] {
        let now = SystemTime::now();
        [
            self.web
                .watch(Side::Connecting, Some(self.cart.chain()), now),
            self.cart
                .watch(Side::Accepting, Some(self.web.chain()), now),
        ]
    }

    /// Refused or closed by web as a client, by cart as a server.
    fn rejected(&self) -> [u64; 2] {
        [
            self.crls[0].rejected(Side::Connecting),
            self.crls[1].rejected(Side::Accepting),
        ]
    }
}

async fn between(client: &Credential, server: &Credential) -> Ends {
    let expected = std::slice::from_ref(server.identity());
    connect(client.client_config(expected), server.server_config()).await
}

fn is_revoked(watch: &mut Watch) -> bool {
    let mut cx = Context::from_waker(Waker::noop());
    matches!(pin!(watch.revoked()).poll(&mut cx), Poll::Ready(()))
}

#[tokio::test]
async fn revoked_peers_are_refused_on_both_ends() {
    for (from_root, from_middle, client_says, server_says) in [
        (&[][..], &[][..], None, None),
        (&[], &[20], Some(REVOKED), None),
        (&[], &[10], None, Some(REVOKED)),
        (&[2], &[], Some(REVOKED), None),
        // the serial numbers of others, and ours on somebody else's list
        (&[10, 20, 1], &[2, 11, 21], None, None),
    ] {
        let world = World::new();
        world.load(&(world.root.list(from_root) + &world.middle.list(from_middle)));
        let (client, server) = world.connect().await;
        let label = format!("{from_root:?} {from_middle:?}");
        for (end, says) in [
            (client.map(drop), client_says),
            (server.map(drop), server_says),
        ] {
            match (end, says) {
                (Ok(()), None) => assert!(client_says.or(server_says).is_none(), "{label}"),
                (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{error}"),
                // the end that refuses ends the other one too
                (Err(_), None) => assert!(client_says.or(server_says).is_some(), "{label}"),
                (Ok(()), Some(_)) => panic!("not refused: {label}"),
            }
        }
        let told = [client_says, server_says].map(|says| u64::from(says.is_some()));
        assert_eq!(world.rejected(), told, "{label}");
    }
}

#[tokio::test]
async fn a_list_counts_only_with_the_signature_of_the_issuer() {
    let world = World::new();
    let impostor = Authority::root("middle");
    world.load(&impostor.list(&[10, 20]));
    assert!(world.connect().await.0.is_ok(), "same name, another key");
    world.load(&(impostor.list(&[10, 20]) + &world.middle.list(&[10])));
    assert!(world.connect().await.1.is_err(), "the right one beside it");
    world.load(&impostor.list_until(&[], 2100));
    assert!(world.connect().await.1.is_ok());
}

#[tokio::test]
async fn a_list_of_an_issuer_that_may_only_sign_certificates_counts_too() {
    let root = Authority::root("root");
    let mut only_certs = params("middle", 2);
    only_certs.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let pair = key();
    let twin = KeyPair::from_pem(&pair.serialize_pem()).unwrap();
    let middle = Authority(CertifiedIssuer::signed_by(only_certs, pair, &root.0).unwrap());
    let signer = Authority(CertifiedIssuer::signed_by(params("middle", 2), twin, &root.0).unwrap());
    let crl = Crl::new();
    crl.load(signer.list(&[10]).as_bytes()).unwrap();
    let leaf = |account, serial| {
        credential(
            middle.leaf(account, serial, &[middle.der()], &[&root]),
            account,
            &crl,
        )
    };
    let (web, cart) = (leaf("web", 10), leaf("cart", 20));
    assert!(between(&cart, &web).await.0.is_err());
    assert!(between(&cart, &cart).await.0.is_ok());
}

#[tokio::test]
async fn an_expired_list_still_counts() {
    let world = World::new();
    world.load(&world.middle.list_until(&[10], 2021));
    assert!(world.connect().await.1.is_err());
}

#[tokio::test]
async fn a_reload_is_seen_by_configurations_that_are_in_use() {
    let world = World::new();
    let (client, server) = (
        world.web.client_config(&[td("cart")]),
        world.cart.server_config(),
    );
    let mut outcomes = Vec::new();
    for serials in [&[][..], &[20], &[]] {
        world.load(&world.middle.list(serials));
        let ends = connect(Arc::clone(&client), Arc::clone(&server)).await;
        outcomes.push(ends.0.is_ok());
    }
    assert_eq!(outcomes, [true, false, true]);
}

#[test]
fn files_of_every_kind() {
    let root = Authority::root("root");
    let list = root.list(&[1]);
    let der = {
        use rustls::pki_types::pem::PemObject;
        rustls::pki_types::CertificateRevocationListDer::from_pem_slice(list.as_bytes()).unwrap()
    };
    let crl = Crl::new();
    let mixed = root.0.pem() + &list + "a comment\n" + &key().serialize_pem() + &list;
    for (file, lists) in [
        (list.as_bytes(), 1),
        (der.as_ref(), 1),
        (mixed.as_bytes(), 2),
        (root.0.pem().as_bytes(), 0),
        (b"", 0),
        (b"\n", 0),
        (root.list(&[]).as_bytes(), 1),
    ] {
        assert_eq!(crl.load(file).unwrap(), lists);
        assert_eq!(crl.lists(), lists);
    }
    let half = &list.as_bytes()[..list.len() / 2];
    let cut = &der[..der.len() - 1];
    let garbled = list.replace("X509 CRL", "CERTIFICATE")
        + "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n";
    let many = list.repeat(257);
    for file in [half, cut, b"rubbish", garbled.as_bytes(), many.as_bytes()] {
        crl.load(file).expect_err("refused");
        assert_eq!(crl.lists(), 1, "the last good ones stay");
    }
    let large = vec![0x30; identity::CRL_BYTES_MAX + 1];
    assert!(matches!(crl.load(&large), Err(CrlError::TooLarge(_))));
}

#[tokio::test]
async fn open_tunnels_learn_of_a_reload_and_count_once() {
    let world = World::new();
    let [mut client, mut server] = world.watch();
    assert!(client.is_on() && server.is_on());
    world.load(&world.middle.list(&[11]));
    assert!(!is_revoked(&mut client) && !is_revoked(&mut server));
    let waiting = tokio::spawn(async move {
        server.revoked().await;
        server
    });
    tokio::task::yield_now().await;
    world.load(&world.middle.list(&[10]));
    let mut server = waiting.await.unwrap();
    assert!(is_revoked(&mut server), "and it stays so");
    assert!(!is_revoked(&mut client), "cart's certificate is good");
    world.load("");
    assert!(is_revoked(&mut server), "what is cut stays cut");
    assert_eq!(world.rejected(), [0, 1]);
    // the intermediate takes all with it
    world.load(&world.root.list(&[2]));
    assert!(is_revoked(&mut client));
    assert_eq!(world.rejected(), [1, 1]);
}

#[test]
fn a_reload_between_handshake_and_watch_is_not_missed() {
    let world = World::new();
    world.load(&world.middle.list(&[10, 20]));
    let [mut client, mut server] = world.watch();
    assert!(is_revoked(&mut client) && is_revoked(&mut server));
    assert_eq!(world.rejected(), [1, 1]);
}

#[tokio::test]
async fn the_verified_path_counts_not_what_was_presented() {
    let root = Authority::root("root");
    let (middle, bystander) = (root.below("middle", 2), root.below("bystander", 3));
    let crl = Crl::new();
    // an odd order, with one that leads nowhere
    let above = [bystander.der(), middle.der(), root.der()];
    let leaf = |account, serial| {
        credential(
            middle.leaf(account, serial, &above, &[&root]),
            account,
            &crl,
        )
    };
    let (web, cart) = (leaf("web", 10), leaf("cart", 20));
    let mut watch = cart.watch(Side::Accepting, Some(web.chain()), SystemTime::now());
    crl.load(root.list(&[3]).as_bytes()).unwrap();
    assert!(between(&web, &cart).await.0.is_ok());
    assert!(!is_revoked(&mut watch), "not on the path");
    crl.load(root.list(&[2]).as_bytes()).unwrap();
    assert!(between(&web, &cart).await.0.is_err());
    assert!(is_revoked(&mut watch));
}

#[tokio::test]
async fn a_second_path_serves_while_the_first_is_revoked() {
    let (one, two) = (Authority::root("one"), Authority::root("two"));
    let middle = one.below("middle", 2);
    let crl = Crl::new();
    let above = [middle.der(), middle.crossed("middle", 3, &two)];
    let leaf = |account, serial| {
        credential(
            middle.leaf(account, serial, &above, &[&one, &two]),
            account,
            &crl,
        )
    };
    let (web, cart) = (leaf("web", 10), leaf("cart", 20));
    let watch = || cart.watch(Side::Accepting, Some(web.chain()), SystemTime::now());
    let mut by_one = watch();
    crl.load(one.list(&[2]).as_bytes()).unwrap();
    assert!(is_revoked(&mut by_one), "its path is broken");
    assert!(between(&web, &cart).await.0.is_ok(), "there is another");
    let mut by_two = watch();
    assert!(!is_revoked(&mut by_two));
    crl.load((one.list(&[2]) + &two.list(&[3])).as_bytes())
        .unwrap();
    assert!(is_revoked(&mut by_two));
    assert!(between(&web, &cart).await.0.is_err());
}

#[test]
fn time_never_closes_a_tunnel() {
    let root = Authority::root("root");
    let crl = Crl::new();
    let cart = credential(root.leaf("cart", 20, &[], &[&root]), "cart", &crl);
    // the peer's certificate held when the tunnel was made, and ended long ago
    let mut params = CertificateParams::default();
    params.serial_number = Some(SerialNumber::from(10));
    params.extended_key_usages = BOTH_ENDS.to_vec();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2021, 1, 1);
    let web = params.signed_by(&key(), &root.0).unwrap();
    let peer = [web.der().clone()];
    let year = Duration::from_secs(365 * 24 * 3600);
    let made = SystemTime::UNIX_EPOCH + 50 * year + year / 2;
    let mut watch = cart.watch(Side::Accepting, Some(&peer), made);
    crl.load(root.list(&[11]).as_bytes()).unwrap();
    assert!(watch.is_on() && !is_revoked(&mut watch));
    crl.load(root.list(&[10]).as_bytes()).unwrap();
    assert!(is_revoked(&mut watch));
    assert_eq!(crl.untracked(Side::Accepting), 0);
}

#[test]
fn a_tunnel_whose_path_is_not_known_is_counted_and_stays() {
    let world = World::new();
    let stranger = Authority::root("root").leaf("web", 10, &[], &[&world.root]);
    let crl = &world.crls[1];
    for peer in [
        None,
        Some(&[][..]),
        Some(&stranger.chain),
        Some(&[CertificateDer::from(vec![1])]),
    ] {
        let mut watch = world.cart.watch(Side::Accepting, peer, SystemTime::now());
        assert!(!watch.is_on() && !is_revoked(&mut watch));
    }
    assert_eq!(crl.untracked(Side::Accepting), 4);
    assert_eq!(crl.untracked(Side::Connecting), 0);
    assert_eq!(world.rejected(), [0, 0]);
}

#[test]
fn without_lists_nothing_is_watched() {
    let root = Authority::root("root");
    let issued = root.leaf("web", 10, &[], &[&root]);
    let web = Credential::with(&td("web"), issued, &Config::default()).unwrap();
    let watch = web.watch(Side::Accepting, Some(web.chain()), SystemTime::now());
    assert!(!watch.is_on());
}
