//! The root of the embedded authority on disk: one file with key and certificate, so that there is never one without the other.
//!
//! The file appears by `link`, which fails if it is there already: of several processes that start together one wins and the
//! others take its root. Leaves to others: what is signed with it (`embedded`).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, date_time_ymd,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use zeroize::{Zeroize, Zeroizing};

use super::since_epoch;
use crate::leaf::{Facts, LeafError};

/// The one file in the directory.
const FILE: &str = "root.pem";
/// Life of a root: ten years.
const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root begins so long before it is made, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(3600);
/// Largest file read; what is written has below 1 KiB.
const FILE_BYTES_MAX: u64 = 64 * 1024;
/// Permission bits of group and others.
const OTHERS: u32 = 0o077;

/// Why the embedded authority cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A system call failed.
    #[error("cannot {what} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        cause: io::Error,
    },
    /// Others could read the key.
    #[error("{} has mode {mode:04o}, expected no access for group and others (chmod go= {})", path.display(), path.display())]
    Loose {
        /// The directory or file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Somebody else could replace the key.
    #[error("{} belongs to user {owner}, expected user {expected}", path.display())]
    Foreign {
        /// The directory or file.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Who we are.
        expected: u32,
    },
    /// The path is there and is no directory.
    #[error("{} is not a directory", .0.display())]
    NotDirectory(PathBuf),
    /// The file holds no root.
    #[error("{} holds no root key with its certificate: {why}", path.display())]
    Unusable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The root's time is over.
    #[error("the root certificate in {} has expired; remove the file on every use of it to start a new root", .0.display())]
    Expired(PathBuf),
    /// Key or certificate could not be made.
    #[error("cannot make a root: {0}")]
    Make(#[from] rcgen::Error),
}

/// An opened root.
pub(super) struct Root {
    issuer: rcgen::Issuer<'static, KeyPair>,
    cert: CertificateDer<'static>,
    not_after: SystemTime,
}

impl Root {
    /// Reads the root in `dir`, made before if it is not there.
    pub fn open(dir: &Path, now: SystemTime) -> Result<Self, OpenError> {
        prepare(dir)?;
        let path = dir.join(FILE);
        let text = match read(&path)? {
            Some(text) => text,
            None => {
                publish(dir, &path, &make(now)?)?;
                read(&path)?
                    .ok_or_else(|| io_error("read", &path, io::ErrorKind::NotFound.into()))?
            }
        };
        let root = Self::parse(&text).map_err(|why| OpenError::Unusable {
            path: path.clone(),
            why,
        })?;
        if root.not_after <= now {
            Err(OpenError::Expired(path))
        } else {
            Ok(root)
        }
    }

    /// The certificate; DER.
    pub fn cert(&self) -> &CertificateDer<'static> {
        &self.cert
    }

    /// When the root's time is over.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// Signs a leaf.
    pub fn sign(
        &self,
        params: &CertificateParams,
        key: &KeyPair,
    ) -> Result<CertificateDer<'static>, rcgen::Error> {
        Ok(params.signed_by(key, &self.issuer)?.der().clone())
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut der =
            PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|why| format!("key: {why}"))?;
        let key = KeyPair::try_from(&der).map_err(|why| format!("key: {why}"));
        der.zeroize();
        let key = key?;
        let cert = CertificateDer::from_pem_slice(text.as_bytes())
            .map_err(|why| format!("certificate: {why}"))?;
        let facts = Facts::parse(&cert).map_err(|why: LeafError| why.to_string())?;
        let (_, parsed) = X509Certificate::from_der(&cert).map_err(|why| why.to_string())?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err("key and certificate do not belong together".into());
        }
        let issuer = rcgen::Issuer::from_ca_cert_der(&cert, key).map_err(|why| why.to_string())?;
        Ok(Self {
            issuer,
            not_after: facts.validity.not_after,
            cert,
        })
    }
}

/// A new root as text: key, then certificate.
fn make(now: SystemTime) -> Result<Zeroizing<String>, rcgen::Error> {
    let mut key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, "ztunnel embedded root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now - BACKDATE);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now + LIFE);
    let cert = params.self_signed(&key)?;
    let mut text = Zeroizing::new(key.serialize_pem());
    text.push_str(&cert.pem());
    key.zeroize();
    Ok(text)
}

/// Makes the directory with mode 0700, or checks the one that is there.
fn prepare(dir: &Path) -> Result<(), OpenError> {
    match DirBuilder::new().recursive(true).mode(0o700).create(dir) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => {
            return Err(OpenError::NotDirectory(dir.into()));
        }
        made => made.map_err(|cause| io_error("make directory", dir, cause))?,
    }
    let meta = dir
        .metadata()
        .map_err(|cause| io_error("look at", dir, cause))?;
    private(dir, &meta)
}

/// Checks that only we can read and write.
fn private(path: &Path, meta: &std::fs::Metadata) -> Result<(), OpenError> {
    let us = nix::unistd::geteuid().as_raw();
    if meta.uid() != us {
        return Err(OpenError::Foreign {
            path: path.into(),
            owner: meta.uid(),
            expected: us,
        });
    }
    match meta.mode() & 0o7777 {
        mode if mode & OTHERS != 0 => Err(OpenError::Loose {
            path: path.into(),
            mode,
        }),
        _ => Ok(()),
    }
}

/// The file's text; `None` if there is no file.
fn read(path: &Path) -> Result<Option<Zeroizing<String>>, OpenError> {
    let file = match File::open(path) {
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened.map_err(|cause| io_error("open", path, cause))?,
    };
    let meta = file
        .metadata()
        .map_err(|cause| io_error("look at", path, cause))?;
    private(path, &meta)?;
    let mut text = Zeroizing::new(String::new());
    file.take(FILE_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|cause| io_error("read", path, cause))?;
    Ok(Some(text))
}

/// Puts `text` at `path` in one step, unless something is there: then that stays.
fn publish(dir: &Path, path: &Path, text: &str) -> Result<(), OpenError> {
    let draft = dir.join(format!(".{FILE}.{:032x}", rand::random::<u128>()));
    let linked = write(&draft, text).and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(cause) if cause.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = std::fs::remove_file(&draft);
    linked.map_err(|cause| io_error("write", path, cause))?;
    removed.map_err(|cause| io_error("remove", &draft, cause))?;
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|cause| io_error("sync", dir, cause))
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn io_error(what: &'static str, path: &Path, cause: io::Error) -> OpenError {
    OpenError::Io {
        what,
        path: path.into(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn open(dir: &Path) -> Result<Root, OpenError> {
        Root::open(dir, SystemTime::now())
    }

    fn text(result: Result<Root, OpenError>) -> String {
        result.err().expect("refused").to_string()
    }

    #[test]
    fn makes_directory_and_file_for_nobody_else_and_keeps_them() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("a/b");
        let first = open(&dir).unwrap();
        assert_eq!(dir.metadata().unwrap().mode() & 0o7777, 0o700);
        assert_eq!(dir.join(FILE).metadata().unwrap().mode() & 0o7777, 0o600);
        assert_eq!(
            std::fs::read_dir(&dir).unwrap().count(),
            1,
            "no draft is left"
        );
        assert_eq!(open(&dir).unwrap().cert(), first.cert());
    }

    #[test]
    fn refuses_what_others_can_read() {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o750)).unwrap();
        let why = text(open(tmp.path()));
        assert!(
            why.contains("has mode 0750, expected no access for group and others"),
            "{why}"
        );

        std::fs::set_permissions(tmp.path(), PermissionsExt::from_mode(0o700)).unwrap();
        open(tmp.path()).unwrap();
        std::fs::set_permissions(tmp.path().join(FILE), PermissionsExt::from_mode(0o640)).unwrap();
        assert!(text(open(tmp.path())).contains("root.pem has mode 0640"));
    }

    #[test]
    fn refuses_what_belongs_to_others() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test needs root: it gives a directory away"
        );
        std::os::unix::fs::chown(tmp.path(), Some(65534), None).unwrap();
        assert!(text(open(tmp.path())).contains("belongs to user 65534, expected user 0"));
    }

    #[test]
    fn refuses_files_without_a_root() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("ca");
        prepare(&dir).unwrap();
        let file = dir.join(FILE);
        let (one, other) = (
            make(SystemTime::now()).unwrap(),
            make(SystemTime::now()).unwrap(),
        );
        let cut = |text: &str| text.find("-----BEGIN CERTIFICATE").expect("a certificate");
        let mixed = format!("{}{}", &one[..cut(&one)], &other[cut(&other)..]);
        for (content, expected) in [
            ("", "key: "),
            (&one[..cut(&one)], "certificate: "),
            (&one[cut(&one)..], "key: "),
            (&mixed, "do not belong together"),
        ] {
            let _ = std::fs::remove_file(&file);
            write(&file, content).unwrap();
            let why = text(open(&dir));
            assert!(
                why.contains("root.pem holds no root key with its certificate")
                    && why.contains(expected),
                "{why}"
            );
        }
        assert!(text(open(&file)).ends_with("is not a directory"));
    }

    #[test]
    fn refuses_an_expired_root() {
        let tmp = tempfile::tempdir().unwrap();
        let dir = tmp.path().join("ca");
        open(&dir).unwrap();
        let later = SystemTime::now() + LIFE + BACKDATE;
        assert!(text(Root::open(&dir, later)).contains("has expired"));
    }
}
