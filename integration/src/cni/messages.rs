//! The messages of package `istio.workload.zds`, from the table of fields, apart from the daemon's own: a number that is
//! wrong there does not agree with itself here.

use prost::Message;

/// First packet of the proxy.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Hello {
    /// 1 = V1
    #[prost(int32, tag = "1")]
    pub version: i32,
}

/// Who a pod is.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct WorkloadInfo {
    /// pod name
    #[prost(string, tag = "1")]
    pub name: String,
    /// pod namespace
    #[prost(string, tag = "2")]
    pub namespace: String,
    /// service account
    #[prost(string, tag = "3")]
    pub service_account: String,
}

/// A pod comes; its network namespace goes along as a descriptor.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct AddWorkload {
    /// pod UID
    #[prost(string, tag = "1")]
    pub uid: String,
    /// who it is
    #[prost(message, optional, tag = "2")]
    pub workload_info: Option<WorkloadInfo>,
}

/// A pod exists, but its namespace is not known.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct KeepWorkload {
    /// pod UID
    #[prost(string, tag = "1")]
    pub uid: String,
}

/// A pod is gone.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct DelWorkload {
    /// pod UID; number 1 is not used
    #[prost(string, tag = "2")]
    pub uid: String,
}

/// End of the first snapshot.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct SnapshotSent {}

/// What a request asks.
#[derive(Clone, PartialEq, Eq, prost::Oneof)]
pub enum Payload {
    /// a pod comes
    #[prost(message, tag = "1")]
    Add(AddWorkload),
    /// a pod is gone
    #[prost(message, tag = "2")]
    Del(DelWorkload),
    /// end of the snapshot
    #[prost(message, tag = "3")]
    SnapshotSent(SnapshotSent),
    /// a pod exists
    #[prost(message, tag = "5")]
    Keep(KeepWorkload),
}

/// Agent to proxy.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Request {
    /// what is asked
    #[prost(oneof = "Payload", tags = "1, 2, 3, 5")]
    pub payload: Option<Payload>,
}

impl Request {
    /// An addition.
    pub fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Self {
        let info = WorkloadInfo {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
        };
        Payload::Add(AddWorkload {
            uid: uid.to_owned(),
            workload_info: Some(info),
        })
        .into()
    }

    /// A removal.
    pub fn del(uid: &str) -> Self {
        Payload::Del(DelWorkload {
            uid: uid.to_owned(),
        })
        .into()
    }

    /// A pod without a namespace.
    pub fn keep(uid: &str) -> Self {
        Payload::Keep(KeepWorkload {
            uid: uid.to_owned(),
        })
        .into()
    }

    /// The end of the snapshot.
    pub fn snapshot_sent() -> Self {
        Payload::SnapshotSent(SnapshotSent {}).into()
    }

    /// `add <uid>`, `del <uid>`, `keep <uid>`, `snapshot_sent`.
    pub fn name(&self) -> String {
        match &self.payload {
            Some(Payload::Add(add)) => format!("add {}", add.uid),
            Some(Payload::Del(del)) => format!("del {}", del.uid),
            Some(Payload::Keep(keep)) => format!("keep {}", keep.uid),
            Some(Payload::SnapshotSent(_)) => "snapshot_sent".to_owned(),
            None => "nothing".to_owned(),
        }
    }
}

impl From<Payload> for Request {
    fn from(payload: Payload) -> Self {
        Self {
            payload: Some(payload),
        }
    }
}

/// An answer's meaning.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Ack {
    /// empty = it worked
    #[prost(string, tag = "1")]
    pub error: String,
}

/// Proxy to agent, one for each request.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Response {
    /// the one thing that it can be
    #[prost(oneof = "answer::Payload", tags = "1")]
    pub payload: Option<answer::Payload>,
}

/// What a response holds.
pub mod answer {
    /// The one arm.
    #[derive(Clone, PartialEq, Eq, prost::Oneof)]
    pub enum Payload {
        /// it worked, or did not
        #[prost(message, tag = "1")]
        Ack(super::Ack),
    }
}

/// The error text of an answer, empty for success; none if the bytes are no answer.
pub fn error_of(bytes: &[u8]) -> Option<String> {
    let answer::Payload::Ack(ack) = Response::decode(bytes).ok()?.payload?;
    Some(ack.error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_those_of_the_contract() {
        assert_eq!(Hello { version: 1 }.encode_to_vec(), [8, 1]);
        assert_eq!(
            Request::del("u").encode_to_vec(),
            [0x12, 3, 0x12, 1, b'u'],
            "del carries its uid under number 2"
        );
        assert_eq!(
            Request::keep("u").encode_to_vec(),
            [0x2a, 3, 0x0a, 1, b'u'],
            "keep is number 5"
        );
        assert_eq!(Request::snapshot_sent().encode_to_vec(), [0x1a, 0]);
        assert_eq!(error_of(&[0x0a, 0]).as_deref(), Some(""));
        assert_eq!(error_of(&[]), None);
    }
}
