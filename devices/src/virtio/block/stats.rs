use std::sync::atomic::{AtomicU64, Ordering};

use super::state::State;

/// What a disk has done since it was made, for all of its sessions together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DiskStats {
    /// Read requests that succeeded.
    pub reads: u64,
    /// Bytes that they moved.
    pub read_bytes: u64,
    /// Write requests that succeeded.
    pub writes: u64,
    /// Bytes that they moved.
    pub written_bytes: u64,
    /// Flush requests that succeeded.
    pub flushes: u64,
    /// Discard and write-zeroes requests that succeeded.
    pub discards: u64,
    /// Requests of any kind that did not succeed: refused, unsupported, or failed on the host.
    pub errors: u64,
    /// Times that the rate limit made requests wait.
    pub throttled: u64,
}

/// The same, as counted. Each is a number of its own, so the order of updates does not matter.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: AtomicU64,
    pub(super) read_bytes: AtomicU64,
    pub(super) writes: AtomicU64,
    pub(super) written_bytes: AtomicU64,
    pub(super) flushes: AtomicU64,
    pub(super) discards: AtomicU64,
    pub(super) errors: AtomicU64,
    pub(super) throttled: AtomicU64,
}

impl Counters {
    pub(super) fn snapshot(&self) -> DiskStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DiskStats {
            reads: of(&self.reads),
            read_bytes: of(&self.read_bytes),
            writes: of(&self.writes),
            written_bytes: of(&self.written_bytes),
            flushes: of(&self.flushes),
            discards: of(&self.discards),
            errors: of(&self.errors),
            throttled: of(&self.throttled),
        }
    }
}

impl super::super::Counters for State {
    fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
        let stats = self.counters.snapshot();
        each("reads", stats.reads);
        each("read_bytes", stats.read_bytes);
        each("writes", stats.writes);
        each("written_bytes", stats.written_bytes);
        each("flushes", stats.flushes);
        each("discards", stats.discards);
        each("errors", stats.errors);
        each("throttled", stats.throttled);
    }
}

/// Adds to a counter; it wraps around, after centuries.
pub(super) fn count(counter: &AtomicU64, amount: u64) {
    counter.fetch_add(amount, Ordering::Relaxed);
}
