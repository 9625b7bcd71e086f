//! The bounded queue between those who log and the one who writes. Nothing is dropped: who finds it full waits.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most lines that wait for the writer.
pub(super) const LINES_MAX: usize = 10_000;
/// Most bytes of text that wait for the writer: lines can be long.
pub(super) const BYTES_MAX: usize = 16 * 1024 * 1024;
/// Slots kept allocated after a burst.
const SLOTS_KEPT: usize = 512;

/// How many bytes of text an item holds besides itself.
pub(crate) trait Weigh {
    /// Bytes on the heap that only this item keeps alive.
    fn weight(&self) -> usize;
}

/// Many producers, one consumer that takes all at once.
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    emptied: Condvar,
}

struct State<T> {
    items: Vec<T>,
    bytes: usize,
    reader_waits: bool,
    writers_wait: usize,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = State {
            items: Vec::new(),
            bytes: 0,
            reader_waits: false,
            writers_wait: 0,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
            filled: Condvar::new(),
            emptied: Condvar::new(),
        }
    }
}

impl<T: Weigh> Queue<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `item` last; waits while the queue is full. `false` if the queue is closed: the item is dropped.
    pub(crate) fn push(&self, item: T) -> bool {
        let weight = item.weight();
        let mut state = self.lock();
        while !state.closed
            && !state.items.is_empty()
            && (state.items.len() >= LINES_MAX || state.bytes + weight > BYTES_MAX)
        {
            state.writers_wait += 1;
            state = self
                .emptied
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.writers_wait -= 1;
        }
        if state.closed {
            return false;
        }
        state.bytes += weight;
        state.items.push(item);
        if std::mem::take(&mut state.reader_waits) {
            drop(state);
            self.filled.notify_one();
        }
        true
    }

    /// Waits for items and moves all of them into `batch`, which must be empty. `false` when closed and empty.
    pub(crate) fn drain(&self, batch: &mut Vec<T>) -> bool {
        if batch.capacity() > SLOTS_KEPT {
            batch.shrink_to(SLOTS_KEPT);
        }
        let mut state = self.lock();
        while state.items.is_empty() && !state.closed {
            state.reader_waits = true;
            state = self
                .filled
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.reader_waits = false;
        state.bytes = 0;
        std::mem::swap(&mut state.items, batch);
        if state.writers_wait > 0 {
            self.emptied.notify_all();
        }
        !batch.is_empty() || !state.closed
    }

    /// Takes no more items; wakes all who wait.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
        self.emptied.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, mpsc};

    struct Text(usize, usize);

    impl Weigh for Text {
        fn weight(&self) -> usize {
            self.1
        }
    }

    #[test]
    fn full_by_lines_waits_and_loses_nothing() {
        let queue = Arc::new(Queue::default());
        for n in 0..LINES_MAX {
            assert!(queue.push(Text(n, 1)));
        }
        let (done, pushed) = mpsc::channel();
        let late = Arc::clone(&queue);
        let thread = std::thread::spawn(move || {
            late.push(Text(LINES_MAX, 1));
            done.send(()).unwrap();
        });
        while queue.lock().writers_wait == 0 {
            std::thread::yield_now();
        }
        assert!(
            pushed.try_recv().is_err(),
            "a full queue must make the writer wait"
        );
        let mut batch = Vec::new();
        assert!(queue.drain(&mut batch));
        assert_eq!(batch.len(), LINES_MAX);
        pushed.recv().unwrap();
        batch.clear();
        assert!(queue.drain(&mut batch));
        assert_eq!(
            batch.iter().map(|text| text.0).collect::<Vec<_>>(),
            [LINES_MAX]
        );
        thread.join().unwrap();
    }

    #[test]
    fn full_by_bytes_waits_but_one_item_always_fits() {
        let queue = Arc::new(Queue::default());
        assert!(queue.push(Text(0, BYTES_MAX + 1)));
        let late = Arc::clone(&queue);
        let thread = std::thread::spawn(move || late.push(Text(1, 1)));
        while queue.lock().writers_wait == 0 {
            std::thread::yield_now();
        }
        queue.drain(&mut Vec::new());
        assert!(thread.join().unwrap());
    }

    #[test]
    fn closing_hands_out_the_rest_and_frees_waiters() {
        let queue = Queue::default();
        queue.push(Text(7, 0));
        queue.close();
        assert!(!queue.push(Text(8, 0)));
        let mut batch = Vec::new();
        assert!(queue.drain(&mut batch));
        batch.clear();
        assert!(!queue.drain(&mut batch));
    }
}
