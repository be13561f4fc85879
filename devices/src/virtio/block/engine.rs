use std::fmt::Debug;
use std::io;
use std::os::fd::BorrowedFd;

use super::buffers::Buffer;

/// One thing for an [`Engine`] to do. Offsets and lengths are bytes of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Moves at most `len` bytes from `offset` on into guest memory. Fewer is fine, except none: that
    /// is the end of the storage.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes, at least one.
        len: u64,
    },
    /// Moves at most `len` bytes out of guest memory to `offset`. Fewer is fine, except none.
    Write {
        /// First byte.
        offset: u64,
        /// Bytes, at least one.
        len: u64,
    },
    /// Makes every write that was complete before durable.
    Sync,
    /// What these bytes hold is no longer needed. A hint: doing nothing is right.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes, at least one.
        len: u64,
    },
    /// Makes all of these bytes zero.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes, at least one.
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
    pub result: io::Result<u64>,
}

/// What carries out a disk's operations, for one session: from the driver's DRIVER_OK to reset.
///
/// Operations may run side by side and end in any order; an engine may as well do each at once. It
/// was made with the guest's memory and keeps that alive while any operation can still touch it.
///
/// An implementation of one's own ([`Block::with_engine`](super::Block::with_engine)) brings storage
/// that is no file, or the faults that a test wants.
pub trait Engine: Debug + Send {
    /// Begins `operation`. `buffers` is the guest memory of a read or a write; at least as long as the
    /// operation, and checked to be inside the guest's memory.
    ///
    /// `tag` is in use by no other operation, and below the depth that the engine was made for, or
    /// equal to it.
    fn begin(&mut self, tag: u16, operation: Operation, buffers: &[Buffer]);

    /// Starts what was begun and only waits to be started together with more.
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
