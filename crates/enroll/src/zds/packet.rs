//! The packets: what the agent says, read into requests; what is answered, within what the agent reads.
//!
//! Pure, and open about what a descriptor is. What a request leads to is left to `book.rs`.

use std::sync::Arc;

use prost::Message;
use proto::zds::workload_request::Payload;
use proto::zds::{Ack, Version, WorkloadRequest, WorkloadResponse, ZdsHello, workload_response};

/// Longest packet, either way (spec: inpod §1).
pub const PACKET_BYTES_MAX: usize = 1024;
/// Longest text of a refusal, so that its packet fits whatever else is in it.
const ERROR_BYTES_MAX: usize = 900;

/// Who a pod is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    /// pod name
    pub name: Arc<str>,
    /// pod namespace
    pub namespace: Arc<str>,
    /// service account
    pub service_account: Arc<str>,
}

/// What the agent asks for. `N` is the network namespace that comes with an add.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request<N> {
    /// A pod is in the mesh.
    Add {
        /// Kubernetes UID
        uid: Arc<str>,
        /// who it is; the agent always says so
        info: Option<Info>,
        /// its namespace
        netns: N,
    },
    /// A pod is in the mesh still; the agent has no handle of its namespace.
    Keep(Arc<str>),
    /// A pod is gone, or has left the mesh.
    Del(Arc<str>),
    /// All pods were told.
    SnapshotSent,
}

/// Why a packet is no request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadPacket {
    /// It, or what came with it, is longer than it may be.
    #[error("the packet or its descriptors were cut off")]
    Truncated,
    /// It is no message of this protocol.
    #[error("{0}")]
    Undecodable(#[from] prost::DecodeError),
    /// It asks for nothing that is known.
    #[error("no known request in the packet")]
    Nothing,
    /// A descriptor of which the kernel says nothing.
    #[error("descriptor: {0}")]
    Descriptor(String),
    /// Not as many descriptors as this request has.
    #[error("{got} descriptors, expected {expected}")]
    Descriptors {
        /// how many came
        got: usize,
        /// how many belong to the request
        expected: usize,
    },
}

/// Reads one packet. Descriptors that are not handed on are dropped, hence closed.
///
/// - `truncated`: the packet or its descriptors did not fit
pub fn read<N>(packet: &[u8], truncated: bool, mut fds: Vec<N>) -> Result<Request<N>, BadPacket> {
    if truncated {
        return Err(BadPacket::Truncated);
    }
    let payload = WorkloadRequest::decode(packet)?
        .payload
        .ok_or(BadPacket::Nothing)?;
    let got = fds.len();
    let expected = usize::from(matches!(payload, Payload::Add(_)));
    if got != expected {
        return Err(BadPacket::Descriptors { got, expected });
    }
    Ok(match (payload, fds.pop()) {
        (Payload::Add(add), Some(netns)) => Request::Add {
            uid: add.uid.into(),
            info: add.workload_info.map(|info| Info {
                name: info.name.into(),
                namespace: info.namespace.into(),
                service_account: info.service_account.into(),
            }),
            netns,
        },
        (Payload::Add(_), None) => return Err(BadPacket::Descriptors { got, expected }),
        (Payload::Keep(keep), _) => Request::Keep(keep.uid.into()),
        (Payload::Del(del), _) => Request::Del(del.uid.into()),
        (Payload::SnapshotSent(_), _) => Request::SnapshotSent,
    })
}

/// The first packet of a connection.
pub fn hello() -> Vec<u8> {
    ZdsHello {
        version: Version::V1.into(),
    }
    .encode_to_vec()
}

/// The answer to a request: empty = done, else why not, cut to what fits.
pub fn answer(error: &str) -> Vec<u8> {
    let end = (0..=ERROR_BYTES_MAX.min(error.len()))
        .rfind(|end| error.is_char_boundary(*end))
        .unwrap_or(0);
    let ack = Ack {
        error: error[..end].to_owned(),
    };
    WorkloadResponse {
        payload: Some(workload_response::Payload::Ack(ack)),
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `add` of uid `u`: name `n`, namespace `ns`, account `sa`.
    const ADD: &[u8] = b"\x0a\x10\x0a\x01u\x12\x0b\x0a\x01n\x12\x02ns\x1a\x02sa";
    const ADD_BARE: &[u8] = b"\x0a\x03\x0a\x01u";
    const DEL: &[u8] = b"\x12\x03\x12\x01u";
    const SENT: &[u8] = b"\x1a\x00";
    const KEEP: &[u8] = b"\x2a\x03\x0a\x01u";

    fn info() -> Option<Info> {
        Some(Info {
            name: "n".into(),
            namespace: "ns".into(),
            service_account: "sa".into(),
        })
    }

    fn add(info: Option<Info>) -> Request<i32> {
        Request::Add {
            uid: "u".into(),
            info,
            netns: 7,
        }
    }

    #[test]
    fn bytes_are_those_of_the_protocol() {
        assert_eq!(hello(), b"\x08\x01");
        assert_eq!(answer(""), b"\x0a\x00");
        assert_eq!(answer("no"), b"\x0a\x04\x0a\x02no");
        for (bytes, fds, request) in [
            (ADD, vec![7], add(info())),
            (ADD_BARE, vec![7], add(None)),
            (DEL, vec![], Request::Del("u".into())),
            (SENT, vec![], Request::SnapshotSent),
            (KEEP, vec![], Request::Keep("u".into())),
            // fields that a later version may add are passed over
            (b"\x1a\x02\x08\x01\x48\x01", vec![], Request::SnapshotSent),
        ] {
            assert_eq!(read(bytes, false, fds), Ok(request));
        }
    }

    #[test]
    fn what_is_no_request_says_why() {
        for (bytes, fds, why) in [
            (ADD, 0, "0 descriptors, expected 1"),
            (ADD, 2, "2 descriptors, expected 1"),
            (DEL, 1, "1 descriptors, expected 0"),
            (SENT, 1, "1 descriptors, expected 0"),
            (KEEP, 1, "1 descriptors, expected 0"),
            (b"", 0, "no known request in the packet"),
            (b"\x22\x00", 0, "no known request in the packet"),
            (b"\x3a\x00", 1, "no known request in the packet"),
        ] {
            let error = read(bytes, false, vec![(); fds]).unwrap_err();
            assert_eq!(error.to_string(), why, "{bytes:?} {fds}");
        }
        for bytes in [b"\xff\xff".as_slice(), b"\x0a\x05\x0a\x01\xff", b"\x0a\x7f"] {
            let error = read::<()>(bytes, false, vec![()]).unwrap_err();
            assert!(matches!(error, BadPacket::Undecodable(_)), "{bytes:?}");
        }
        assert_eq!(read(ADD, true, vec![()]), Err(BadPacket::Truncated));
    }

    #[test]
    fn a_long_refusal_still_fits_the_packet() {
        for long in [
            "x".repeat(5000),
            "ü".repeat(3000),
            "∑".repeat(ERROR_BYTES_MAX),
        ] {
            let packet = answer(&long);
            assert!(packet.len() < 1000, "{}", packet.len());
            let back = WorkloadResponse::decode(&*packet).unwrap();
            let Some(workload_response::Payload::Ack(ack)) = back.payload else {
                panic!("no ack");
            };
            assert!(ack.error.len() > ERROR_BYTES_MAX - 4 && long.starts_with(&ack.error));
        }
    }
}
