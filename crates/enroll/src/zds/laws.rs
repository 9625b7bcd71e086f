//! What holds whatever the agent sends: driven by the tests below and by the fuzzer.

use std::collections::BTreeMap;

use super::book::{Book, PODS_MAX, Started, Step};
use super::packet::{self, PACKET_BYTES_MAX};

/// Any packets, one after the other, with any descriptors and any outcomes of starts: whoever follows the steps serves what
/// the book says, no pod is told to stop that was not to start, and the answer always fits.
pub fn takes_any_packets(bytes: &[u8]) {
    let mut book = Book::<u8>::default();
    // what a follower of the orders serves: namespace by pod
    let mut served = BTreeMap::new();
    let mut rest = bytes;
    while let Some((&[kind, len, netns], tail)) = rest.split_first_chunk::<3>() {
        let (packet, tail) = tail.split_at(tail.len().min(len.into()));
        rest = tail;
        if kind & 0x80 != 0 {
            book.connected();
        }
        let fds = vec![netns; usize::from(kind & 3)];
        let request = match packet::read(packet, kind & 0x40 != 0, fds) {
            Ok(request) => request,
            Err(error) => {
                fits(&error.to_string());
                book.connected();
                continue;
            }
        };
        match book.take(request) {
            Ok(Step::Done) => {}
            Ok(Step::Refused(why)) => fits(&why),
            Ok(Step::Start {
                candidate,
                replaces,
            }) => {
                let before = served.remove(&candidate.uid);
                assert_eq!(
                    replaces,
                    before.is_some_and(|netns| netns != candidate.netns)
                );
                let how = match kind >> 2 & 3 {
                    _ if book.holder(&candidate).is_some() => Started::No("taken".to_owned()),
                    0 => Started::No("no".to_owned()),
                    1 => Started::Unknown,
                    _ => Started::Yes,
                };
                if !matches!(how, Started::No(_)) {
                    served.insert(candidate.uid.clone(), candidate.netns);
                }
                book.started(candidate, how);
            }
            Ok(Step::Stop(uids)) => {
                for uid in uids {
                    assert!(served.remove(&uid).is_some(), "{uid} was never started");
                }
            }
            Err(error) => fits(&error.to_string()),
        }
        assert!(served.len() <= PODS_MAX);
        assert!(book.serves(&served), "{served:?} beside {book:?}");
    }
}

fn fits(error: &str) {
    assert!(packet::answer(error).len() < PACKET_BYTES_MAX);
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::zds::workload_request::Payload;
    use proto::zds::{
        AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, WorkloadInfo, WorkloadRequest,
    };

    use super::*;

    /// Numbers that look random and are the same each time (xorshift).
    struct Dice(u64);

    impl Dice {
        fn roll(&mut self, sides: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % sides
        }
    }

    /// Mostly sensible packets about few pods, now and then a damaged one.
    fn script(dice: &mut Dice) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..dice.roll(60) {
            let uid = format!("pod-{}", dice.roll(4));
            let payload = match dice.roll(8) {
                0..4 => Payload::Add(AddWorkload {
                    uid,
                    workload_info: (dice.roll(20) != 0).then(WorkloadInfo::default),
                }),
                4 | 5 => Payload::Del(DelWorkload { uid }),
                6 => Payload::Keep(KeepWorkload { uid }),
                _ => Payload::SnapshotSent(SnapshotSent {}),
            };
            let adds = matches!(payload, Payload::Add(_));
            let request = WorkloadRequest {
                payload: Some(payload),
            };
            let mut packet = request.encode_to_vec();
            if dice.roll(30) == 0 {
                packet.truncate(dice.roll(packet.len() as u64 + 1) as usize);
            }
            let again = u64::from(dice.roll(12) == 0) << 7;
            let fds = if dice.roll(30) == 0 {
                dice.roll(4)
            } else {
                adds.into()
            };
            bytes.push((again | dice.roll(4) << 2 | fds) as u8);
            bytes.push(packet.len() as u8);
            bytes.push(dice.roll(4) as u8);
            bytes.extend(packet);
        }
        bytes
    }

    #[test]
    fn holds_over_many_scripts() {
        let mut dice = Dice(0x5eed);
        for _ in 0..3_000 {
            takes_any_packets(&script(&mut dice));
        }
    }

    #[test]
    fn holds_over_noise() {
        let mut dice = Dice(0xd1ce);
        for _ in 0..3_000 {
            let noise: Vec<u8> = (0..dice.roll(200)).map(|_| dice.roll(256) as u8).collect();
            takes_any_packets(&noise);
        }
    }
}
