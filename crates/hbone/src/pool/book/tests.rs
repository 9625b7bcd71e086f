//! The rules as tables, with connections that only count.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use super::{Book, Checkout, Line};

const IDLE: Duration = Duration::from_secs(300);

/// A connection with a number and so many places left.
#[derive(Clone)]
struct Fake {
    number: u32,
    room: Rc<Cell<u32>>,
    usable: Rc<Cell<bool>>,
}

fn fake(number: u32, room: u32) -> Fake {
    Fake {
        number,
        room: Rc::new(Cell::new(room)),
        usable: Rc::new(Cell::new(true)),
    }
}

impl Line for Fake {
    type Slot = u32;

    fn is_usable(&self) -> bool {
        self.usable.get()
    }

    fn reserve(&self) -> Option<u32> {
        let left = self.room.get().checked_sub(1)?;
        self.room.set(left);
        Some(self.number)
    }
}

fn book(len_max: usize) -> Book<&'static str, Fake> {
    Book::new(len_max, IDLE)
}

/// Adds a connection as a dial would.
fn dial(book: &mut Book<&'static str, Fake>, key: &'static str, line: Fake, now: Instant) {
    assert_eq!(book.checkout(&key, now), Checkout::Dial, "{key}");
    book.add(key, line, now);
    book.dialled(&key);
}

#[test]
fn one_dial_per_key_at_a_time() {
    let (mut book, now) = (book(9), Instant::now());
    assert_eq!(book.checkout(&"a", now), Checkout::Dial);
    assert_eq!(book.checkout(&"a", now), Checkout::Wait);
    assert_eq!(book.checkout(&"b", now), Checkout::Dial);
    book.dialled(&"a");
    assert_eq!(
        book.checkout(&"a", now),
        Checkout::Dial,
        "a failed dial gives the turn on"
    );
    book.add("a", fake(1, 1), now);
    book.dialled(&"a");
    assert_eq!(book.checkout(&"a", now), Checkout::Use(1));
    assert_eq!(
        book.checkout(&"a", now),
        Checkout::Dial,
        "the only connection is full"
    );
}

#[test]
fn full_connections_come_back_and_the_oldest_is_preferred() {
    let (mut book, now) = (book(9), Instant::now());
    let first = fake(1, 1);
    dial(&mut book, "a", first.clone(), now);
    assert_eq!(book.checkout(&"a", now), Checkout::Use(1));
    dial(&mut book, "a", fake(2, 5), now);
    assert_eq!(book.checkout(&"a", now), Checkout::Use(2));
    first.room.set(1);
    assert_eq!(book.checkout(&"a", now), Checkout::Use(1));
    assert_eq!(book.checkout(&"a", now), Checkout::Use(2));
    assert_eq!(book.len(), 2);
}

#[test]
fn unusable_connections_are_dropped() {
    let (mut book, now) = (book(9), Instant::now());
    let line = fake(1, 9);
    dial(&mut book, "a", line.clone(), now);
    line.usable.set(false);
    assert_eq!(book.checkout(&"a", now), Checkout::Dial);
    assert_eq!(book.len(), 0);
    let line = fake(2, 9);
    book.add("a", line.clone(), now);
    book.dialled(&"a");
    line.usable.set(false);
    book.prune(&"a");
    assert!(book.peers.is_empty());
}

#[test]
fn the_least_recently_used_makes_room() {
    let (mut book, start) = (book(2), Instant::now());
    let at = |secs| start + Duration::from_secs(secs);
    dial(&mut book, "a", fake(1, 9), at(0));
    dial(&mut book, "b", fake(2, 9), at(1));
    assert_eq!(book.checkout(&"a", at(2)), Checkout::Use(1));
    dial(&mut book, "c", fake(3, 9), at(3));
    assert_eq!(book.len(), 2);
    assert_eq!(book.checkout(&"a", at(4)), Checkout::Use(1));
    assert_eq!(book.checkout(&"c", at(4)), Checkout::Use(3));
    assert_eq!(book.checkout(&"b", at(4)), Checkout::Dial);
}

#[test]
fn idle_connections_are_swept() {
    let (mut book, start) = (book(9), Instant::now());
    assert_eq!(book.sweep(start), None);
    dial(&mut book, "a", fake(1, 9), start);
    let later = start + Duration::from_secs(100);
    dial(&mut book, "b", fake(2, 9), later);
    assert_eq!(book.sweep(later), Some(start + IDLE));
    assert_eq!(book.sweep(start + IDLE), Some(later + IDLE));
    assert_eq!(book.len(), 1);
    assert_eq!(book.checkout(&"b", later + IDLE / 2), Checkout::Use(2));
    assert_eq!(book.sweep(later + IDLE), Some(later + IDLE / 2 + IDLE));
    assert_eq!(book.sweep(later + IDLE * 2), None);
    assert!(book.peers.is_empty());
}

#[test]
fn clearing_leaves_dials_under_way() {
    let (mut book, now) = (book(9), Instant::now());
    dial(&mut book, "a", fake(1, 9), now);
    assert_eq!(book.checkout(&"b", now), Checkout::Dial);
    book.clear();
    assert_eq!(book.len(), 0);
    assert_eq!(book.checkout(&"b", now), Checkout::Wait);
    book.add("b", fake(2, 9), now);
    book.dialled(&"b");
    assert_eq!(book.checkout(&"b", now), Checkout::Use(2));
}
