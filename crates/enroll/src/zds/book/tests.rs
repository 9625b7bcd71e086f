//! Every row of the protocol's table of requests, as steps of a dialogue.

use super::*;

/// What is said to the book, and what it answers.
enum Say {
    Connect,
    Add(&'static str, u32),
    AddBare(&'static str),
    Keep(&'static str),
    Del(&'static str),
    Sent,
    /// how the start went that the last step asked for
    Went(Started),
    /// a pending pod is tried again
    Again(&'static str, Started),
}
use Say::*;

fn info() -> Info {
    Info {
        name: "n".into(),
        namespace: "ns".into(),
        service_account: "sa".into(),
    }
}

fn no() -> Started {
    Started::No("port taken".into())
}

#[derive(Default)]
struct Dialogue {
    book: Book<u32>,
    asked: Option<Candidate<u32>>,
}

impl Dialogue {
    fn say(&mut self, say: Say) -> String {
        let request = match say {
            Connect => {
                self.book.connected();
                return String::new();
            }
            Went(how) => {
                let asked = self.asked.take().expect("a start was asked for");
                self.book.started(asked, how);
                return String::new();
            }
            Again(uid, how) => {
                let Some(again) = self.book.again(uid) else {
                    return "not pending".into();
                };
                self.book.started(again, how);
                return String::new();
            }
            Add(uid, netns) => Request::Add {
                uid: uid.into(),
                info: Some(info()),
                netns,
            },
            AddBare(uid) => Request::Add {
                uid: uid.into(),
                info: None,
                netns: 0,
            },
            Keep(uid) => Request::Keep(uid.into()),
            Del(uid) => Request::Del(uid.into()),
            Sent => Request::SnapshotSent,
        };
        match self.book.take(request) {
            Ok(Step::Done) => "done".into(),
            Ok(Step::Refused(why)) => format!("refused: {why}"),
            Ok(Step::Start {
                candidate,
                replaces,
            }) => {
                let text = format!(
                    "{} {} in {}",
                    if replaces { "replace" } else { "start" },
                    candidate.uid,
                    candidate.netns
                );
                self.asked = Some(candidate);
                text
            }
            Ok(Step::Stop(uids)) => format!("stop {}", uids.join(" ")),
            Err(error) => format!("fatal: {error}"),
        }
    }

    /// Served | pending | whether the snapshot is there.
    fn state(&self) -> String {
        let pending: Vec<_> = self.book.pending_uids().map(|uid| &**uid).collect();
        let mark = if self.book.has_snapshot() {
            "snapshot"
        } else {
            ""
        };
        format!(
            "{}|{}|{mark}",
            self.book.served().join(" "),
            pending.join(" ")
        )
    }
}

fn check(case: &str, steps: Vec<(Say, &str, &str)>) {
    let mut dialogue = Dialogue::default();
    for (at, (say, answer, state)) in steps.into_iter().enumerate() {
        assert_eq!(dialogue.say(say), answer, "{case}, step {at}");
        assert_eq!(dialogue.state(), state, "{case}, after step {at}");
    }
}

#[test]
fn adds() {
    use Started::Yes;
    check(
        "unknown, then the same again, then another namespace",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(Yes), "", "a||"),
            (Add("a", 1), "done", "a||"),
            (Add("a", 2), "replace a in 2", "||"),
            (Went(Yes), "", "a||"),
            (Sent, "done", "a||snapshot"),
            (Add("b", 3), "start b in 3", "a||snapshot"),
            (Went(Yes), "", "a b||snapshot"),
        ],
    );
    check(
        "a replacement that fails leaves nothing",
        vec![
            (Sent, "done", "||snapshot"),
            (Add("a", 1), "start a in 1", "||snapshot"),
            (Went(Yes), "", "a||snapshot"),
            (Add("a", 2), "replace a in 2", "||snapshot"),
            (Went(no()), "", "|a|snapshot"),
        ],
    );
    check(
        "pending, then again with another namespace",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(no()), "", "|a|"),
            (Add("a", 2), "start a in 2", "|a|"),
            (Went(no()), "", "|a|"),
            (Add("a", 3), "start a in 3", "|a|"),
            (Went(Yes), "", "a||"),
        ],
    );
    check(
        "without a name",
        vec![
            (AddBare("a"), "fatal: add without workload info", "||"),
            (Sent, "done", "||snapshot"),
        ],
    );
}

#[test]
fn snapshots() {
    use Started::Yes;
    check(
        "what is not told stops, what is told or kept stays",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(Yes), "", "a||"),
            (Add("b", 2), "start b in 2", "a||"),
            (Went(Yes), "", "a b||"),
            (Add("c", 3), "start c in 3", "a b||"),
            (Went(Yes), "", "a b c||"),
            (Sent, "done", "a b c||snapshot"),
            (
                Sent,
                "fatal: second snapshot on one connection",
                "a b c||snapshot",
            ),
            (Connect, "", "a b c||"),
            (Add("a", 1), "done", "a b c||"),
            (Keep("b"), "done", "a b c||"),
            (Keep("unknown"), "done", "a b c||"),
            (Sent, "stop c", "a b||snapshot"),
            (Keep("a"), "fatal: keep after the snapshot", "a b||snapshot"),
            (Connect, "", "a b||"),
            (Sent, "stop a b", "||snapshot"),
        ],
    );
    check(
        "a failed start of the snapshot counts as told once it succeeds",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(no()), "", "|a|"),
            (Again("a", Yes), "", "a||"),
            (Sent, "done", "a||snapshot"),
        ],
    );
    check(
        "a new connection forgets what is pending",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(no()), "", "|a|"),
            (Connect, "", "||"),
            (Again("a", Yes), "not pending", "||"),
        ],
    );
}

#[test]
fn dels() {
    use Started::Yes;
    check(
        "before the snapshot nothing stops",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(Yes), "", "a||"),
            (Add("b", 2), "start b in 2", "a||"),
            (Went(no()), "", "a|b|"),
            (Del("a"), "done", "a|b|"),
            (Del("b"), "done", "a||"),
            (Sent, "stop a", "||snapshot"),
        ],
    );
    check(
        "told again after it was deleted",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(Yes), "", "a||"),
            (Del("a"), "done", "a||"),
            (Add("a", 1), "done", "a||"),
            (Sent, "done", "a||snapshot"),
        ],
    );
    check(
        "after the snapshot",
        vec![
            (Sent, "done", "||snapshot"),
            (Del("unknown"), "done", "||snapshot"),
            (Add("a", 1), "start a in 1", "||snapshot"),
            (Went(Yes), "", "a||snapshot"),
            (Del("a"), "stop a", "||snapshot"),
            (Add("a", 1), "start a in 1", "||snapshot"),
            (Went(no()), "", "|a|snapshot"),
            (Del("a"), "done", "||snapshot"),
            (Again("a", Yes), "not pending", "||snapshot"),
        ],
    );
}

#[test]
fn a_start_that_nobody_answered_may_be_there() {
    use Started::{Unknown, Yes};
    check(
        "it is asked for again, and stopped like any other",
        vec![
            (Sent, "done", "||snapshot"),
            (Add("a", 1), "start a in 1", "||snapshot"),
            (Went(Unknown), "", "a|a|snapshot"),
            (Again("a", Yes), "", "a||snapshot"),
            (Add("b", 2), "start b in 2", "a||snapshot"),
            (Went(Unknown), "", "a b|b|snapshot"),
            (Add("b", 2), "start b in 2", "a b|b|snapshot"),
            (Went(Unknown), "", "a b|b|snapshot"),
            (Del("b"), "stop b", "a||snapshot"),
        ],
    );
    check(
        "over a new connection",
        vec![
            (Add("a", 1), "start a in 1", "||"),
            (Went(Unknown), "", "a|a|"),
            (Connect, "", "a||"),
            (Keep("a"), "done", "a||"),
            (Sent, "done", "a|a|snapshot"),
            (Connect, "", "a||"),
            (Sent, "stop a", "||snapshot"),
        ],
    );
}

#[test]
fn two_pods_never_share_a_namespace() {
    let mut dialogue = Dialogue::default();
    dialogue.say(Add("a", 1));
    dialogue.say(Went(Started::Yes));
    let candidate = |uid: &str, netns| Candidate {
        uid: uid.into(),
        info: info(),
        netns,
    };
    let book = &dialogue.book;
    assert_eq!(book.holder(&candidate("b", 1)).map(|uid| &**uid), Some("a"));
    assert_eq!(book.holder(&candidate("a", 1)), None);
    assert_eq!(book.holder(&candidate("b", 2)), None);
}

#[test]
fn no_more_pods_than_a_node_can_have() {
    let mut book = Book::default();
    let add = |number: usize| Request::Add {
        uid: format!("pod-{number}").into(),
        info: Some(info()),
        netns: number,
    };
    for number in 0..PODS_MAX {
        let Ok(Step::Start { candidate, .. }) = book.take(add(number)) else {
            panic!("pod {number} is not started");
        };
        book.started(candidate, if number % 2 == 0 { Started::Yes } else { no() });
    }
    assert!(matches!(book.take(add(PODS_MAX)), Ok(Step::Refused(_))));
    // those that are known go on
    assert_eq!(book.take(add(0)), Ok(Step::Done));
    assert!(matches!(book.take(add(1)), Ok(Step::Start { .. })));
    assert_eq!(book.take(Request::SnapshotSent), Ok(Step::Done));
    assert!(matches!(
        book.take(Request::Del("pod-0".into())),
        Ok(Step::Stop(_))
    ));
    assert!(matches!(book.take(add(PODS_MAX)), Ok(Step::Start { .. })));
}
