//! What this build is, for the version line, the dump and the metrics.

use serde::Serialize;

/// Build information, in the shape of the dump.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Version {
    build_profile: &'static str,
    build_status: &'static str,
    crypto_provider: &'static str,
    git_revision: &'static str,
    istio_version: String,
    rust_version: &'static str,
    version: &'static str,
}

impl Version {
    /// This build; `istio_version` as configured.
    pub fn new(istio_version: &str) -> Self {
        Self {
            build_profile: if cfg!(debug_assertions) {
                "debug"
            } else {
                "release"
            },
            build_status: env!("ZTUNNEL_BUILD_STATUS"),
            crypto_provider: "aws-lc",
            git_revision: env!("ZTUNNEL_GIT_REVISION"),
            istio_version: istio_version.to_owned(),
            rust_version: env!("ZTUNNEL_RUST_VERSION"),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "version.BuildInfo{{Version:{:?}, GitRevision:{:?}, RustVersion:{:?}, BuildProfile:{:?}, BuildStatus:{:?}, IstioVersion:{:?}, CryptoProvider:{:?}}}",
            self.version,
            self.git_revision,
            self.rust_version,
            self.build_profile,
            self.build_status,
            self.istio_version,
            self.crypto_provider
        )
    }
}
