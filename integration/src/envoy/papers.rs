//! Certificates of an Envoy, from whoever signs for the daemons of its world, as the files that it reads at its start.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, anyhow};
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Istiod;

/// How long a certificate lasts: longer than any test.
const LIFE: Duration = Duration::from_secs(24 * 3600);
/// How old it is at birth, against clocks that differ.
const AGE: Duration = Duration::from_secs(60);

/// Who signs in a world.
pub enum Ca<'a> {
    /// the embedded CA's directory, in which a daemon has made a root before
    Directory(&'a Path),
    /// a control plane
    Istiod(&'a Istiod),
}

/// The files.
#[derive(Debug, Clone)]
pub struct Papers {
    /// leaf and intermediates, PEM
    pub chain: PathBuf,
    /// its key, PEM
    pub key: PathBuf,
    /// trusted roots, PEM
    pub roots: PathBuf,
}

impl Papers {
    /// Issues a certificate and writes it into `dir`, in files that begin with `name`.
    ///
    /// Errors: no root yet (no daemon has run), or a file that cannot be written.
    pub fn issue(ca: &Ca<'_>, identity: &str, dir: &Path, name: &str) -> Result<Self> {
        let (chain, key, roots) = match ca {
            Ca::Directory(ca) => below_root(ca, identity)?,
            Ca::Istiod(istiod) => by_istiod(istiod, identity)?,
        };
        let write = |end: &str, text: &str| -> Result<PathBuf> {
            let file = dir.join(format!("{name}-{end}.pem"));
            fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
            Ok(file)
        };
        Ok(Self {
            chain: write("chain", &chain)?,
            key: write("key", &key)?,
            roots: write("roots", &roots)?,
        })
    }
}

fn below_root(ca: &Path, identity: &str) -> Result<(String, String, String)> {
    let file = ca.join("root.pem");
    let text = fs::read_to_string(&file)
        .with_context(|| format!("read {} (a daemon makes it)", file.display()))?;
    let key =
        PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|why| anyhow!("key: {why}"))?;
    let cert = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|why| anyhow!("certificate: {why}"))?;
    let root = Issuer::from_ca_cert_der(&cert, KeyPair::try_from(&key)?)?;
    let key = KeyPair::generate()?;
    let leaf = request(identity)?.signed_by(&key, &root)?;
    Ok((leaf.pem(), key.serialize_pem(), certificates(&text)))
}

fn by_istiod(istiod: &Istiod, identity: &str) -> Result<(String, String, String)> {
    let key = KeyPair::generate()?;
    let csr = request(identity)?.serialize_request(&key)?.pem()?;
    let mut authority = istiod.authority();
    let (mut chain, _) = authority.sign(&csr, identity, LIFE)?;
    // the bundle stands last, as istiod sends it
    chain.pop();
    Ok((chain.concat(), key.serialize_pem(), authority.bundle()))
}

fn request(identity: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    let now = SystemTime::now();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ClientAuth,
        ExtendedKeyUsagePurpose::ServerAuth,
    ];
    params.not_before = (now - AGE).into();
    params.not_after = (now + LIFE).into();
    Ok(params)
}

/// The certificates of a file that also holds a key.
fn certificates(text: &str) -> String {
    let begin = "-----BEGIN CERTIFICATE-----";
    let end = "-----END CERTIFICATE-----";
    let blocks = text.split(begin).skip(1);
    let blocks =
        blocks.filter_map(|block| Some(format!("{begin}{}{end}\n", block.split_once(end)?.0)));
    blocks.collect()
}

#[cfg(test)]
mod tests {
    use super::certificates;

    #[test]
    fn keys_are_left_out() {
        let block = |what: &str| format!("-----BEGIN {what}-----\nYQ==\n-----END {what}-----\n");
        let text = block("PRIVATE KEY") + &block("CERTIFICATE") + &block("CERTIFICATE");
        assert_eq!(certificates(&text), block("CERTIFICATE").repeat(2));
    }
}
