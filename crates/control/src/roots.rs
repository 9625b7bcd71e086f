//! Whom to trust on the way to the control plane: a file, the system's store, or certificates given inline.
//!
//! Leaves to others: the names a server must have (`channel`), and the roots of workload certificates (`identity`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tracing::warn;

use crate::file::{self, ReadError};

/// Largest file of roots that is read. A bundle of all public roots takes about 220 KiB.
const ROOTS_BYTES_MAX: u64 = 1024 * 1024;

/// Where trusted roots come from (`XDS_ROOT_CA`, `CA_ROOT_CA`).
#[derive(Clone, PartialEq, Eq)]
pub enum Roots {
    /// A PEM file, read again when it is needed.
    File(PathBuf),
    /// The operating system's trust store.
    System,
    /// PEM text.
    Inline(String),
}

impl Roots {
    /// Reads what the roots are made of.
    pub(crate) fn read(&self) -> Result<Material, RootsError> {
        match self {
            Self::File(path) => file::read(path, ROOTS_BYTES_MAX)
                .map(Material::Pem)
                .map_err(|cause| RootsError::Read {
                    path: path.clone(),
                    cause,
                }),
            Self::Inline(text) => Ok(Material::Pem(text.clone().into_bytes())),
            Self::System => Ok(Material::System),
        }
    }

    /// The certificates of `material`, which [`Roots::read`] gave. Unusable ones are skipped with a warning.
    ///
    /// Errors: none is usable.
    pub(crate) fn store(&self, material: &Material) -> Result<Arc<RootCertStore>, RootsError> {
        let mut store = RootCertStore::empty();
        match material {
            Material::Pem(pem) => {
                for found in CertificateDer::pem_slice_iter(pem) {
                    let certificate = found.map_err(|e| RootsError::Pem {
                        of: self.to_string(),
                        cause: e.to_string(),
                    })?;
                    if let Err(error) = store.add(certificate) {
                        warn!(roots = %self, %error, "root certificate skipped");
                    }
                }
            }
            Material::System => {
                let found = rustls_native_certs::load_native_certs();
                for error in &found.errors {
                    warn!(%error, "part of the system's trust store cannot be read");
                }
                store.add_parsable_certificates(found.certs);
            }
        }
        if store.is_empty() {
            return Err(RootsError::Empty {
                of: self.to_string(),
            });
        }
        Ok(Arc::new(store))
    }
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::System => f.write_str("the system's trust store"),
            Self::Inline(_) => f.write_str("the inline certificates"),
        }
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::System => f.write_str("System"),
            Self::Inline(text) => write!(f, "Inline({} bytes)", text.len()),
        }
    }
}

/// What roots are made of: two equal ones give equal trust.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Material {
    /// PEM text.
    Pem(Vec<u8>),
    /// Whatever the system trusts.
    System,
}

/// Why there are no roots.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The file cannot be read.
    #[error("read root certificates from {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: ReadError,
    },
    /// A block in it is not PEM.
    #[error("root certificates from {of} are not PEM: {cause}")]
    Pem {
        /// Where they come from.
        of: String,
        /// What is wrong.
        cause: String,
    },
    /// Not one usable certificate.
    #[error("no usable root certificate in {of}")]
    Empty {
        /// Where they come from.
        of: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_cannot_be_had_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let missing = Roots::File(dir.path().join("missing.pem"));
        let error = crate::cause::chain(&missing.read().err().unwrap());
        assert!(
            error.contains("missing.pem: No such file or directory"),
            "{error}"
        );
        for text in [
            "",
            "no certificate here",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        ] {
            let roots = Roots::Inline(text.into());
            let error = roots.store(&roots.read().unwrap()).unwrap_err().to_string();
            assert_eq!(
                error,
                "no usable root certificate in the inline certificates"
            );
        }
        let cut = Roots::Inline("-----BEGIN CERTIFICATE-----\nAAAA".into());
        let error = cut.store(&cut.read().unwrap()).unwrap_err().to_string();
        assert!(error.contains("not PEM"), "{error}");
    }

    #[test]
    fn one_bad_root_does_not_spoil_the_others() {
        let key = rcgen::KeyPair::generate().unwrap();
        let good = rcgen::CertificateParams::default()
            .self_signed(&key)
            .unwrap()
            .pem();
        let bad = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let roots = Roots::Inline(format!("{bad}{good}{bad}"));
        assert_eq!(roots.store(&roots.read().unwrap()).unwrap().len(), 1);
    }
}
