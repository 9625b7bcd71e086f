//! What the server answers: ordinary records for every name, and by its first label whatever a resolver may do.
//!
//! | first label | answer |
//! |---|---|
//! | `nx`, `servfail`, `refused` | that code, with an SOA record for `nx` |
//! | `empty` | no records, an SOA record |
//! | `big<n>` | n addresses; over UDP cut short when they do not fit |
//! | `ttl<n>` | an address that lives n seconds |
//! | `slow<n>` | an address after n milliseconds |
//! | `silent` | none |
//! | `alias` | an alias of an alias of an address |
//! | `extra` | an address, and one of the other family as an additional record |
//! | `spoof` | first another id, another question, another server; then the true one |
//! | `junk` | bytes that are no message |

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::message::{Asked, Record, kind, name};

/// Life of ordinary records, in seconds.
const TTL_S: u32 = 30;
/// Life of the knowledge that there is nothing, in seconds.
const NEGATIVE_TTL_S: u32 = 20;
/// Pause of the true answer behind false ones.
const BEHIND_FALSE_ONES: Duration = Duration::from_millis(100);
/// What false answers say.
const FALSE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 66);

/// The addresses of every ordinary name.
#[derive(Clone, Copy)]
pub struct Zone {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// One message to send.
pub struct Reply {
    pub after: Duration,
    /// from another port of the server than was asked
    pub from_elsewhere: bool,
    pub message: Vec<u8>,
}

impl Reply {
    fn now(message: Vec<u8>) -> Self {
        Self {
            after: Duration::ZERO,
            from_elsewhere: false,
            message,
        }
    }
}

impl Zone {
    /// All messages that a question gets, in order.
    pub fn replies(&self, asked: &Asked, over_tcp: bool) -> Vec<Reply> {
        let first = asked.name.split('.').next().unwrap_or_default();
        let stem = first.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: u32 = first[stem.len()..].parse().unwrap_or(0);
        let none = || [const { Vec::new() }; 3];
        let soa = || [Vec::new(), vec![self.soa(&asked.name)], Vec::new()];
        let usual = asked.reply(0, &[self.records(asked, TTL_S), Vec::new(), Vec::new()]);
        match stem {
            "nx" => vec![Reply::now(asked.reply(3, &soa()))],
            "servfail" => vec![Reply::now(asked.reply(2, &none()))],
            "refused" => vec![Reply::now(asked.reply(5, &none()))],
            "empty" => vec![Reply::now(asked.reply(0, &soa()))],
            "big" => vec![Reply::now(self.big(asked, number, over_tcp))],
            "ttl" => {
                let records = self.records(asked, number);
                vec![Reply::now(
                    asked.reply(0, &[records, Vec::new(), Vec::new()]),
                )]
            }
            "slow" => vec![Reply {
                after: Duration::from_millis(number.into()),
                ..Reply::now(usual)
            }],
            "silent" => Vec::new(),
            "alias" => vec![Reply::now(self.alias(asked))],
            "extra" => {
                let more = vec![Record::address(self.v6.into(), TTL_S)];
                let records = self.records(asked, TTL_S);
                vec![Reply::now(asked.reply(0, &[records, Vec::new(), more]))]
            }
            "spoof" => self.spoofed(asked, usual),
            "junk" => vec![Reply::now(
                [&asked.id.to_be_bytes()[..], &[0xff; 40]].concat(),
            )],
            _ => vec![Reply::now(usual)],
        }
    }

    /// What every name has.
    fn records(&self, asked: &Asked, ttl: u32) -> Vec<Record> {
        let host = format!("host.{}", asked.name);
        let one = |kind: u16, data: Vec<u8>| vec![Record::new(kind, ttl, data)];
        let address = |ip: IpAddr| vec![Record::address(ip, ttl)];
        match asked.kind {
            kind::A => address(self.v4.into()),
            kind::AAAA => address(self.v6.into()),
            kind::MX => one(kind::MX, [&[0, 10][..], &name(&host)].concat()),
            kind::TXT => one(kind::TXT, b"\x06v=spf1\x04-all".to_vec()),
            kind::SRV => one(
                kind::SRV,
                [&[0, 1, 0, 5, 0x01, 0xbb][..], &name(&host)].concat(),
            ),
            kind::HTTPS => one(
                kind::HTTPS,
                [&[0, 1, 0, 0, 1, 0, 3][..], b"\x02h2"].concat(),
            ),
            kind::CAA => one(kind::CAA, b"\0\x05issueca.test".to_vec()),
            kind::PTR | kind::NS | kind::CNAME => one(asked.kind, name(&host)),
            kind::SOA => vec![self.soa(&asked.name)],
            kind::ANY => [
                address(self.v4.into()),
                address(self.v6.into()),
                one(kind::TXT, b"\x03any".to_vec()),
            ]
            .concat(),
            other => one(other, vec![0xde, 0xad, 0xbe, 0xef]),
        }
    }

    fn soa(&self, asked: &str) -> Record {
        let zone = asked.rsplit('.').next().unwrap_or_default();
        let mut data = name("ns.test");
        data.extend_from_slice(&name("admin.test"));
        for number in [1, 3600, 600, 86400, NEGATIVE_TTL_S] {
            data.extend_from_slice(&number.to_be_bytes());
        }
        Record::new(kind::SOA, NEGATIVE_TTL_S, data).of(zone)
    }

    fn big(&self, asked: &Asked, count: u32, over_tcp: bool) -> Vec<u8> {
        let ip = |n: u32| IpAddr::V4(Ipv4Addr::from_bits(0xc612_0000 + n));
        let all = (0..count).map(|n| Record::address(ip(n), TTL_S)).collect();
        let message = asked.reply(0, &[all, Vec::new(), Vec::new()]);
        match over_tcp || message.len() <= asked.udp_max() {
            true => message,
            false => asked.truncated(),
        }
    }

    fn alias(&self, asked: &Asked) -> Vec<u8> {
        let (first, second) = ("one.example.net", "two.example.net");
        let mut records = vec![Record::new(kind::CNAME, TTL_S, name(first))];
        if asked.kind != kind::CNAME {
            records.push(Record::new(kind::CNAME, TTL_S, name(second)).of(first));
            let own = self.records(asked, TTL_S).into_iter();
            records.extend(own.map(|record| record.of(second)));
        }
        asked.reply(0, &[records, Vec::new(), Vec::new()])
    }

    /// False answers first, each wrong in one thing.
    fn spoofed(&self, asked: &Asked, usual: Vec<u8>) -> Vec<Reply> {
        let false_one = |asked: &Asked| {
            let lie = vec![Record::address(FALSE.into(), TTL_S)];
            asked.reply(0, &[lie, Vec::new(), Vec::new()])
        };
        let mut other_id = asked.clone();
        other_id.id = other_id.id.wrapping_add(1);
        let mut other_question = super::message::question(asked.id, "other.test");
        other_question[2] = 1;
        let other_question = Asked::read(&other_question);
        let mut all = vec![Reply::now(false_one(&other_id))];
        all.extend(other_question.map(|other| Reply::now(false_one(&other))));
        all.push(Reply {
            from_elsewhere: true,
            ..Reply::now(false_one(asked))
        });
        all.push(Reply {
            after: BEHIND_FALSE_ONES,
            ..Reply::now(usual)
        });
        all
    }
}
