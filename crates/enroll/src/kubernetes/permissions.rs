//! Asks the API server whether it answers and whether it would let this source do its work; changes nothing there.

use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Config, Error, client};

/// Something that the source does at the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// API group; empty = core.
    pub group: &'static str,
    /// Resource, in all namespaces.
    pub resource: &'static str,
    /// Verb.
    pub verb: &'static str,
    /// Pods are not enrolled without it.
    pub essential: bool,
}

const fn permission(resource: &'static str, verb: &'static str, essential: bool) -> Permission {
    Permission {
        group: "",
        resource,
        verb,
        essential,
    }
}

/// All that the source does.
pub const PERMISSIONS: [Permission; 6] = [
    permission("pods", "list", true),
    permission("pods", "watch", true),
    permission("namespaces", "list", true),
    permission("namespaces", "watch", true),
    permission("pods", "patch", true),
    Permission {
        group: "events.k8s.io",
        ..permission("events", "create", false)
    },
];

/// What the API server said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// Its version, such as `v1.33.1`.
    pub version: String,
    /// What it would refuse.
    pub denied: Vec<Permission>,
}

/// Why the API server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The settings cannot be used.
    #[error(transparent)]
    Settings(#[from] Error),
    /// It does not answer, or not as an API server.
    #[error("{what}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What came back.
        #[source]
        cause: Box<kube::Error>,
    },
}

impl AskError {
    /// The server answers, and does not take who we are.
    pub fn is_refusal(&self) -> bool {
        let Self::Answer { cause, .. } = self else {
            return false;
        };
        matches!(&**cause, kube::Error::Api(status) if matches!(status.code, 401 | 403))
    }
}

/// Asks for the server's version, and for each of [`PERMISSIONS`] whether it is given. Bounds on the wait are the caller's.
///
/// Errors: [`AskError`].
pub async fn permissions(config: &Config) -> Result<Allowed, AskError> {
    let client = client(config).await?;
    let failed = |what| {
        move |cause| AskError::Answer {
            what,
            cause: Box::new(cause),
        }
    };
    let version = client
        .apiserver_version()
        .await
        .map_err(failed("the API server's version"))?;
    let asked = PERMISSIONS.map(|permission| allowed(client.clone(), permission));
    let answers = futures_util::future::join_all(asked).await;
    let mut denied = Vec::new();
    for (permission, answer) in PERMISSIONS.into_iter().zip(answers) {
        if !answer.map_err(failed("own permissions (SelfSubjectAccessReview)"))? {
            denied.push(permission);
        }
    }
    Ok(Allowed {
        version: version.git_version,
        denied,
    })
}

async fn allowed(client: Client, permission: Permission) -> Result<bool, kube::Error> {
    let attributes = ResourceAttributes {
        group: Some(permission.group.to_owned()),
        resource: Some(permission.resource.to_owned()),
        verb: Some(permission.verb.to_owned()),
        ..ResourceAttributes::default()
    };
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(attributes),
            non_resource_attributes: None,
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = Api::all(client)
        .create(&PostParams::default(), &review)
        .await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}
