//! In which form a client wants objects: whole, or their metadata only.

use serde_json::{Value, json};

use super::status::Failure;
use super::store::Kind;

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// as stored
    Whole,
    /// `PartialObjectMetadata`
    Metadata,
}

impl View {
    /// Reads an `Accept` header.
    ///
    /// Errors: 406, it takes no JSON.
    pub fn of(accept: &str) -> Result<Self, Failure> {
        for media in accept.split(',') {
            let media: String = media.chars().filter(|c| !c.is_whitespace()).collect();
            let mut parts = media.split(';');
            let kind = parts.next().unwrap_or_default();
            if !matches!(kind, "" | "*/*" | "application/*" | "application/json") {
                continue;
            }
            match parts.find(|part| part.starts_with("as=")) {
                None => return Ok(Self::Whole),
                Some("as=PartialObjectMetadata" | "as=PartialObjectMetadataList") => {
                    return Ok(Self::Metadata);
                }
                Some(_) => (),
            }
        }
        Err(Failure::not_acceptable())
    }

    /// An object that stands alone or in a stream.
    pub fn object(self, object: &Value) -> Value {
        match self {
            Self::Whole => object.clone(),
            Self::Metadata => json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            }),
        }
    }

    /// A list.
    pub fn list(self, kind: Kind, metadata: Value, items: &[impl AsRef<Value>]) -> Value {
        let items: Vec<_> = items.iter().map(|item| self.item(item.as_ref())).collect();
        let (name, version) = match self {
            Self::Whole => (format!("{}List", kind.kind()), "v1"),
            Self::Metadata => ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1"),
        };
        json!({"kind": name, "apiVersion": version, "metadata": metadata, "items": items})
    }

    /// An object in a list; the kind of whole ones stands on the list.
    fn item(self, object: &Value) -> Value {
        let mut object = self.object(object);
        if self == Self::Whole
            && let Some(fields) = object.as_object_mut()
        {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        object
    }

    /// A bookmark: nothing but a version, and whether it ends the initial events.
    pub fn bookmark(self, kind: Kind, version: u64, initial: bool) -> Value {
        let mut object = match self {
            Self::Whole => match kind {
                Kind::Pods => json!({"kind": "Pod", "apiVersion": "v1",
                    "metadata": {"creationTimestamp": null},
                    "spec": {"containers": null}, "status": {}}),
                Kind::Namespaces => json!({"kind": "Namespace", "apiVersion": "v1",
                    "metadata": {"creationTimestamp": null}, "spec": {}, "status": {}}),
                Kind::Events => json!({"kind": "Event", "apiVersion": "v1",
                    "metadata": {"creationTimestamp": null}, "involvedObject": {}, "source": {}}),
            },
            Self::Metadata => json!({"kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1", "metadata": {"creationTimestamp": null}}),
        };
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if initial {
            object["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        object
    }
}
