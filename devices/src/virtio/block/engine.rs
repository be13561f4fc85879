use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use super::super::{Chain, Slices};

/// One thing for an [`Engine`] to do. Offsets and lengths are bytes of the disk; none is empty.
#[derive(Debug)]
pub enum Operation<'chain> {
    /// Fills `data` from `offset` on. Less than all is fine, nothing means the end of the storage.
    Read {
        /// Where on the disk.
        offset: u64,
        /// Guest memory to fill.
        data: Data<'chain>,
    },
    /// Puts `data` at `offset`. Less than all is fine, nothing counts as a failure.
    Write {
        /// Where on the disk.
        offset: u64,
        /// Guest memory to take it from.
        data: Data<'chain>,
    },
    /// Makes every write that was complete before durable.
    Sync,
    /// What these bytes hold is no longer needed. A hint: doing nothing is right.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Makes all of these bytes zero.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// The storage behind them may be given back.
        unmap: bool,
    },
}

/// The end of an [`Operation`].
#[derive(Debug)]
pub struct Completion {
    /// The tag that it was begun with.
    pub tag: u16,
    /// Bytes that were read or written; anything for the other operations.
    pub result: io::Result<usize>,
}

/// What carries out a disk's operations, for one session: from the driver's `DRIVER_OK` to reset.
///
/// Operations may run side by side and end in any order, or each at once in [`begin`](Self::begin).
///
/// An implementation of one's own ([`Disk::with_engine`](super::Disk::with_engine)) brings storage
/// that is no file, or the faults that a test wants.
pub trait Engine: Debug {
    /// Begins `operation`. No other operation that is still in flight has this `tag`.
    fn begin(&mut self, tag: u16, operation: Operation<'_>);

    /// Starts what was begun and still waits, so that many are started at once.
    ///
    /// # Errors
    /// The engine cannot go on; the device then needs a reset.
    fn submit(&mut self) -> io::Result<()> {
        Ok(())
    }

    /// The next operation that has ended, if there is one. Never blocks.
    fn complete(&mut self) -> Option<Completion>;

    /// A file descriptor that is readable when [`complete`](Self::complete) has something, for engines
    /// whose operations end by themselves.
    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Blocks until nothing is in flight any more.
    ///
    /// # Errors
    /// The engine cannot go on; the device then needs a reset.
    fn drain(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The guest memory that a read or a write moves: a run of bytes in a request's buffers.
#[derive(Debug)]
pub struct Data<'chain> {
    chain: &'chain Chain,
    range: Range<usize>,
    writable: bool,
}

impl<'chain> Data<'chain> {
    /// Bytes that the driver wrote, to be put on the disk.
    pub(super) fn from_driver(chain: &'chain Chain, range: Range<usize>) -> Self {
        Self { chain, range, writable: false }
    }

    /// Room for bytes of the disk.
    pub(super) fn to_driver(chain: &'chain Chain, range: Range<usize>) -> Self {
        Self { chain, range, writable: true }
    }

    /// How many bytes; at least one.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // It never is.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// The bytes as they lie in host memory.
    #[must_use]
    pub fn slices(&self) -> Slices<'chain> {
        if self.writable {
            self.chain.writable_slices(self.range.clone())
        } else {
            self.chain.readable_slices(self.range.clone())
        }
    }

    /// What keeps the bytes mapped.
    #[cfg(feature = "io-uring")]
    pub(super) fn memory(&self) -> &std::sync::Arc<vm_memory::GuestMemoryMmap> {
        &self.chain.memory
    }
}
