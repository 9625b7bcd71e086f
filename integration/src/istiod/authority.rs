//! The control plane's own certificate, and the authority that signs those of workloads: roots that come and go,
//! an intermediate, serial numbers that are remembered, and lists of the revoked ones.
//!
//! Leaves to others: whom to sign for (`ca`), serving (`server`).

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use rand::Rng;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams,
    CertificateSigningRequestParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Lifetime of roots, intermediates and server certificates.
const LONG: Duration = Duration::from_secs(24 * 3600);
/// How much earlier than now these begin, against clocks that differ.
const EARLIER: Duration = Duration::from_secs(60);
/// Name of every root and, with a suffix, of intermediates: a rotated root keeps its name, only the key differs.
const SUBJECT: &str = "cluster.local";

/// A certificate that can sign others.
pub struct Signer {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Signer {
    /// A root of its own.
    ///
    /// Errors: of the key generator.
    pub fn root() -> Result<Self> {
        let key = KeyPair::generate()?;
        let params = authority(SUBJECT, BasicConstraints::Unconstrained);
        let cert = params.self_signed(&key)?;
        Ok(Self {
            pem: cert.pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// An intermediate below this one.
    ///
    /// Errors: of the key generator.
    pub fn intermediate(&self) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = authority(
            &format!("{SUBJECT} intermediate"),
            BasicConstraints::Constrained(0),
        );
        params.serial_number = Some(SerialNumber::from(serial()));
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Self {
            pem: cert.pem(),
            der: cert.der().clone(),
            issuer: Issuer::new(params, key),
        })
    }

    /// The certificate, PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// TLS settings of a server with a certificate for these names, host names or addresses.
    ///
    /// Errors: a name that is none.
    pub fn server(&self, names: &[String]) -> Result<Arc<ServerConfig>> {
        let mut params = leaf(&SystemTime::now(), LONG);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.subject_alt_names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => Ok(SanType::DnsName(name.as_str().try_into()?)),
            })
            .collect::<Result<_>>()?;
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        let key =
            PrivateKeyDer::try_from(key.serialize_der()).map_err(|why| anyhow!("key: {why}"))?;
        let mut config =
            ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issued {
    /// whom for, as a SPIFFE id
    pub identity: String,
    /// serial number; the dump of a daemon shows it in decimal
    pub serial: u64,
    /// index of the root it leads to
    pub root: usize,
}

/// Signs for workloads.
pub struct Authority {
    roots: Vec<Signer>,
    intermediates: BTreeMap<usize, Signer>,
    signs: usize,
    trusted: Vec<usize>,
    issued: Vec<Issued>,
    lists: u64,
}

impl Authority {
    /// One root, which signs and is trusted.
    ///
    /// Errors: of the key generator.
    pub fn new() -> Result<Self> {
        Ok(Self {
            roots: vec![Signer::root()?],
            intermediates: BTreeMap::new(),
            signs: 0,
            trusted: vec![0],
            issued: Vec::new(),
            lists: 0,
        })
    }

    /// Makes a further root, which neither signs nor is trusted yet; returns its index. The first has index 0.
    ///
    /// Errors: of the key generator.
    pub fn add_root(&mut self) -> Result<usize> {
        self.roots.push(Signer::root()?);
        Ok(self.roots.len() - 1)
    }

    /// From now on certificates lead to this root.
    ///
    /// Panics: there is none of that index.
    pub fn sign_with(&mut self, root: usize) {
        assert!(root < self.roots.len(), "no root {root}");
        self.signs = root;
    }

    /// From now on these roots are the bundle that goes along with each certificate.
    ///
    /// Panics: there is none of such an index.
    pub fn trust(&mut self, roots: &[usize]) {
        assert!(
            roots.iter().all(|&root| root < self.roots.len()),
            "no such root"
        );
        self.trusted = roots.to_vec();
    }

    /// From now on an intermediate signs below each root, or the root itself.
    ///
    /// Errors: of the key generator.
    pub fn use_intermediates(&mut self, on: bool) -> Result<()> {
        self.intermediates.clear();
        if on {
            for (index, root) in self.roots.iter().enumerate() {
                self.intermediates.insert(index, root.intermediate()?);
            }
        }
        Ok(())
    }

    /// All that was signed, in order.
    pub fn issued(&self) -> &[Issued] {
        &self.issued
    }

    /// The bundle of trusted roots, PEM.
    pub fn bundle(&self) -> String {
        self.trusted
            .iter()
            .map(|&root| self.roots[root].pem())
            .collect()
    }

    /// Signs a request: the chain as istiod sends it (leaf, intermediates, bundle) and what was signed.
    ///
    /// - `csr`: PEM; its key is used and nothing else of it
    /// - `life`: from now on
    ///
    /// Errors: the request cannot be read or its signature is wrong.
    pub fn sign(
        &mut self,
        csr: &str,
        identity: &str,
        life: Duration,
    ) -> Result<(Vec<String>, Issued)> {
        let mut request = CertificateSigningRequestParams::from_pem(csr)?;
        let number = serial();
        request.params = leaf(&SystemTime::now(), life);
        request.params.serial_number = Some(SerialNumber::from(number));
        request.params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        let root = &self.roots[self.signs];
        let between = self.intermediates.get(&self.signs);
        let cert = request.signed_by(&between.unwrap_or(root).issuer)?;
        let mut chain = vec![cert.pem()];
        chain.extend(between.map(|signer| signer.pem.clone()));
        chain.push(self.bundle());
        let issued = Issued {
            identity: identity.to_owned(),
            serial: number,
            root: self.signs,
        };
        self.issued.push(issued.clone());
        Ok((chain, issued))
    }

    /// Replaces a file by lists of revoked certificates, one list for each signer, by rename.
    ///
    /// - `serials`: of leaves; those that are not known stand in every list
    ///
    /// Errors: the file cannot be written.
    pub fn write_revoked(&mut self, file: &Path, serials: &[u64]) -> Result<()> {
        self.lists += 1;
        let mut text = String::new();
        for signer in self.roots.iter().chain(self.intermediates.values()) {
            text.push_str(&revoked(&signer.issuer, self.lists, serials)?);
        }
        crate::model::replace(file, &text)
    }

    /// Replaces a file by a list in which the intermediate below the signing root is revoked.
    ///
    /// Errors: there is none, or the file cannot be written.
    pub fn write_intermediate_revoked(&mut self, file: &Path) -> Result<()> {
        self.lists += 1;
        let signer = self
            .intermediates
            .get(&self.signs)
            .context("no intermediate signs")?;
        let (_, cert) = x509_parser::parse_x509_certificate(&signer.der)?;
        let number: u64 = cert.serial.to_string().parse()?;
        let text = revoked(&self.roots[self.signs].issuer, self.lists, &[number])?;
        crate::model::replace(file, &text)
    }
}

fn revoked(issuer: &Issuer<'_, KeyPair>, number: u64, serials: &[u64]) -> Result<String> {
    let now = SystemTime::now();
    let entries = serials.iter().map(|&serial| RevokedCertParams {
        serial_number: SerialNumber::from(serial),
        revocation_time: now.into(),
        reason_code: None,
        invalidity_date: None,
    });
    let list = CertificateRevocationListParams {
        this_update: (now - EARLIER).into(),
        next_update: (now + LONG).into(),
        crl_number: SerialNumber::from(number),
        issuing_distribution_point: None,
        revoked_certs: entries.collect(),
        key_identifier_method: KeyIdMethod::Sha256,
    };
    Ok(list.signed_by(issuer)?.pem()?)
}

/// Writes a text that several processes read, its directory with it.
///
/// Errors: of the file system.
pub fn write(file: &Path, text: &str) -> Result<()> {
    if let Some(dir) = file.parent() {
        fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
    }
    crate::model::replace(file, text)
}

fn authority(name: &str, constraints: BasicConstraints) -> CertificateParams {
    let mut params = leaf(&SystemTime::now(), LONG);
    params
        .distinguished_name
        .push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(constraints);
    params.extended_key_usages.clear();
    params.key_usages = vec![
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
        KeyUsagePurpose::DigitalSignature,
    ];
    params.not_before = (SystemTime::now() - EARLIER).into();
    params
}

fn leaf(from: &SystemTime, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.use_authority_key_identifier_extension = true;
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    params.not_before = (*from).into();
    params.not_after = (*from + life).into();
    params
}

/// A serial number whose first bit is clear, so that it is written without a sign byte.
fn serial() -> u64 {
    rand::rng().random_range(1 << 32..1 << 62)
}
