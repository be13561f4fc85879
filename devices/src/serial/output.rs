use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A bounded queue of bytes from a guest to one consumer on the host.
///
/// [`push`](Self::push) never blocks: what does not fit is dropped and counted. The consumer is woken
/// through the callback given to [`new`](Self::new), but only when it said that it sleeps
/// ([`take_or_sleep`](Self::take_or_sleep)) or when the queue has become half full, so that a stream of
/// single bytes does not cost a wake-up each.
pub struct OutputBuffer {
    inner: Mutex<Inner>,
    /// To be read without the lock.
    dropped: AtomicU64,
    delivered: Condvar,
    capacity: usize,
    wake: Box<dyn Fn() + Send + Sync>,
}

struct Inner {
    bytes: VecDeque<u8>,
    consumer_sleeps: bool,
    closed: bool,
}

impl OutputBuffer {
    /// A queue of `capacity` bytes. Memory is taken as it fills.
    ///
    /// `wake` is called on the producer's thread; it must not block.
    pub fn new(capacity: usize, wake: impl Fn() + Send + Sync + 'static) -> Self {
        let inner = Inner { bytes: VecDeque::new(), consumer_sleeps: true, closed: false };
        let (inner, dropped, delivered) = (Mutex::new(inner), AtomicU64::new(0), Condvar::new());
        Self { inner, dropped, delivered, capacity, wake: Box::new(wake) }
    }

    /// Appends `bytes`, dropping what does not fit.
    pub fn push(&self, bytes: &[u8]) {
        let mut inner = self.inner();
        let before = inner.bytes.len();
        let capacity = if inner.closed { 0 } else { self.capacity };
        let kept = capacity.saturating_sub(before).min(bytes.len());
        let (kept, dropped) = bytes.split_at_checked(kept).unwrap_or((bytes, &[]));
        inner.bytes.extend(kept);
        self.count_dropped(dropped.len());
        let half = self.capacity / 2;
        let half_full = before < half && inner.bytes.len() >= half;
        let wake = std::mem::take(&mut inner.consumer_sleeps) || half_full;
        drop(inner);
        if wake {
            (self.wake)();
        }
    }

    /// Moves at most `limit` bytes to the end of `into`, and returns how many.
    pub fn take(&self, into: &mut Vec<u8>, limit: usize) -> usize {
        let mut inner = self.inner();
        let count = inner.bytes.len().min(limit);
        into.extend(inner.bytes.drain(..count));
        count
    }

    /// As [`take`](Self::take); if there was nothing, the next [`push`](Self::push) calls `wake`.
    pub fn take_or_sleep(&self, into: &mut Vec<u8>, limit: usize) -> usize {
        let count = self.take(into, limit);
        if count > 0 {
            return count;
        }
        let mut inner = self.inner();
        // A push may have come in between: then there is no reason to sleep.
        inner.consumer_sleeps = inner.bytes.is_empty();
        if !inner.consumer_sleeps {
            drop(inner);
            return self.take(into, limit);
        }
        drop(inner);
        self.delivered.notify_all();
        0
    }

    /// The consumer is gone: drops all that is still queued and all that will come, counting it.
    pub fn close(&self) {
        let mut inner = self.inner();
        self.count_dropped(inner.bytes.len());
        inner.bytes = VecDeque::new();
        inner.closed = true;
        drop(inner);
        self.delivered.notify_all();
    }

    /// Waits until the consumer has delivered all that was pushed and sleeps, or is gone. False if that takes
    /// longer than `timeout`.
    pub fn wait_delivered(&self, timeout: Duration) -> bool {
        let busy = |inner: &mut Inner| !(inner.consumer_sleeps || inner.closed);
        let wait = self.delivered.wait_timeout_while(self.inner(), timeout, busy);
        let (_inner, wait) = wait.unwrap_or_else(PoisonError::into_inner);
        !wait.timed_out()
    }

    /// How many bytes wait for the consumer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner().bytes.len()
    }

    /// Whether none do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Counts `count` bytes as dropped: those that the consumer took and could not deliver.
    pub fn count_dropped(&self, count: usize) {
        self.dropped.fetch_add(count as u64, Ordering::Relaxed);
    }

    /// How many bytes were dropped so far, without a lock.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Valid after every step, so a panic elsewhere cannot spoil it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OutputBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = self.inner();
        f.debug_struct("OutputBuffer")
            .field("queued", &inner.bytes.len())
            .field("capacity", &self.capacity)
            .field("dropped", &self.dropped())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn wakes_a_sleeping_consumer_once_and_a_busy_one_when_half_full() {
        let wakes = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&wakes);
        let buffer = OutputBuffer::new(8, move || {
            counter.fetch_add(1, Ordering::SeqCst);
        });
        let count = || wakes.load(Ordering::SeqCst);
        let mut seen = Vec::new();
        buffer.push(b"a");
        assert_eq!(count(), 1, "a new consumer sleeps");
        buffer.push(b"b");
        assert_eq!(count(), 1, "it is awake now");
        buffer.push(b"cd");
        assert_eq!(count(), 2, "half full");
        assert_eq!(buffer.take(&mut seen, 100), 4);
        buffer.push(b"e");
        assert_eq!(count(), 2, "take does not put it to sleep");
        assert_eq!(buffer.take_or_sleep(&mut seen, 100), 1);
        assert_eq!(buffer.take_or_sleep(&mut seen, 100), 0);
        buffer.push(b"f");
        assert_eq!(count(), 3);
        assert_eq!(seen, b"abcde");
    }

    #[test]
    fn what_the_consumer_has_taken_is_delivered_when_it_asks_again() {
        let buffer = OutputBuffer::new(8, || {});
        let delivered = || buffer.wait_delivered(Duration::from_millis(1));
        assert!(delivered(), "there is nothing");
        buffer.push(b"a");
        assert!(!delivered());
        buffer.take_or_sleep(&mut Vec::new(), 100);
        assert!(buffer.is_empty() && !delivered(), "it is being written");
        buffer.take_or_sleep(&mut Vec::new(), 100);
        assert!(delivered());
        buffer.push(b"b");
        buffer.close();
        assert!(delivered(), "nobody is there to wait for");
    }

    #[test]
    fn holds_its_capacity_and_counts_the_rest() {
        let buffer = OutputBuffer::new(4, || {});
        buffer.push(b"abc");
        buffer.push(b"defg");
        assert_eq!(buffer.dropped(), 3);
        buffer.close();
        assert_eq!(buffer.dropped(), 7);
        assert_eq!(buffer.take(&mut Vec::new(), 100), 0);
        buffer.push(b"h");
        assert_eq!(buffer.dropped(), 8);
        let none = OutputBuffer::new(0, || {});
        none.push(b"xy");
        assert_eq!(none.dropped(), 2);
    }
}
