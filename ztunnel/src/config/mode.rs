//! For whom the daemon works: all pods of a node, or the one machine that it runs on.

use super::value::{Env, Invalid};

/// What `PROXY_WORKLOAD_INFO` must look like.
const MEMBER: &str = "<namespace>/<name>/<service account>, for PROXY_MODE=dedicated";

/// One workload of the mesh, as the control plane knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// namespace
    pub namespace: String,
    /// name of the workload (a WorkloadEntry or a pod)
    pub name: String,
    /// service account
    pub service_account: String,
}

/// For whom the daemon works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mode {
    /// the pods of its node
    Shared,
    /// its own network namespace, as this member of the mesh
    Dedicated(Member),
}

impl Mode {
    pub(super) fn read(env: &Env<'_>) -> Result<Self, Invalid> {
        match &*env.text("PROXY_MODE", "shared") {
            "shared" => Ok(Self::Shared),
            "dedicated" => {
                let text = env.required("PROXY_WORKLOAD_INFO", MEMBER)?;
                let parts: Vec<&str> = text.split('/').collect();
                match parts[..] {
                    [namespace, name, account] if parts.iter().all(|part| !part.is_empty()) => {
                        Ok(Self::Dedicated(Member {
                            namespace: namespace.to_owned(),
                            name: name.to_owned(),
                            service_account: account.to_owned(),
                        }))
                    }
                    _ => Err(Invalid::new("PROXY_WORKLOAD_INFO", text, MEMBER)),
                }
            }
            other => Err(Invalid::new("PROXY_MODE", other, "shared or dedicated")),
        }
    }

    /// The member whose machine this is, in dedicated mode.
    pub fn member(&self) -> Option<&Member> {
        match self {
            Self::Shared => None,
            Self::Dedicated(member) => Some(member),
        }
    }
}
