//! Disk I/O by io_uring: any number of operations in flight, begun and collected in batches.
#![allow(unsafe_code)]

use std::fmt;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use io_uring::types::{Fd, FsyncFlags};
use io_uring::{IoUring, Probe, opcode, squeue};
use vm_memory::GuestMemoryMmap;

use super::engine::{Completion, Data, Engine, Operation};
use super::file::{DiskFile, Way};
use super::sync_engine::SyncEngine;
use super::sys::IoVecs;

/// What can wait for storage goes through the ring: reads, direct writes, syncs. Done at once by a
/// [`SyncEngine`] are writes to the page cache, which the kernel would hand to a thread of its own
/// at twice the cost, and what is rare: discards, zeroes, and what direct I/O cannot do as it is.
pub(super) struct UringEngine {
    ring: IoUring,
    file: Arc<DiskFile>,
    at_once: SyncEngine,
    /// By tag.
    slots: Vec<Slot>,
    in_flight: usize,
}

/// What an operation in flight must keep: where its data is, and that it stays there.
#[derive(Debug, Default)]
struct Slot {
    iovecs: IoVecs,
    memory: Option<Arc<GuestMemoryMmap>>,
    busy: bool,
}

impl UringEngine {
    /// A ring for operations with tags below `tags`.
    ///
    /// # Errors
    /// The kernel has no io_uring, or too old a one, or does not let this process use it.
    pub(super) fn new(file: Arc<DiskFile>, tags: u16) -> io::Result<Self> {
        let ring = IoUring::new(u32::from(tags).next_power_of_two())?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        let codes = [opcode::Readv::CODE, opcode::Writev::CODE, opcode::Fsync::CODE];
        // Without `nodrop`, completions could get lost; without `submit_stable`, the lists of pieces
        // would be read at any later moment.
        let params = ring.params();
        if !codes.iter().all(|&code| probe.is_supported(code))
            || !params.is_feature_nodrop()
            || !params.is_feature_submit_stable()
        {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut slots = Vec::new();
        slots.resize_with(tags.into(), Slot::default);
        Ok(Self { ring, at_once: SyncEngine::new(Arc::clone(&file)), file, slots, in_flight: 0 })
    }

    fn move_data(
        &mut self,
        tag: u16,
        offset: u64,
        data: &Data<'_>,
        entry: impl FnOnce(Fd, &IoVecs) -> squeue::Entry,
    ) -> io::Result<()> {
        let slot = self.slots.get_mut(usize::from(tag)).filter(|slot| !slot.busy);
        let slot = slot.ok_or(io::ErrorKind::InvalidInput)?;
        i64::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))?;
        slot.iovecs.fill(data)?;
        slot.memory = Some(Arc::clone(data.memory()));
        let entry = entry(Fd(self.file.as_raw_fd()), &slot.iovecs);
        self.push(tag, entry)
    }

    fn sync(&mut self, tag: u16) -> io::Result<()> {
        let slot = self.slots.get(usize::from(tag)).filter(|slot| !slot.busy);
        slot.ok_or(io::ErrorKind::InvalidInput)?;
        let entry = opcode::Fsync::new(Fd(self.file.as_raw_fd())).flags(FsyncFlags::DATASYNC);
        self.push(tag, entry.build())
    }

    /// Queues an entry whose pieces and memory, if it has any, are in the slot of `tag`.
    fn push(&mut self, tag: u16, entry: squeue::Entry) -> io::Result<()> {
        let entry = entry.user_data(tag.into());
        let Some(slot) = self.slots.get_mut(usize::from(tag)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: what the entry refers to outlives the operation. The list of pieces is in the slot,
        // which is not touched while `busy`. The guest memory that they name is mapped as long as the
        // slot's `Arc` is there; the file is open as long as `self.file` is. `busy` ends in `reap` with
        // the operation's completion, and `drop` waits for all completions, or else leaks what they
        // need. If the engine itself is leaked, so are the slots and the file. Guest memory has no Rust
        // references, so the kernel may read and write it at any time.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        // There are as many entries as tags, so there is room.
        pushed.map_err(|_| io::ErrorKind::OutOfMemory)?;
        slot.busy = true;
        self.in_flight = self.in_flight.saturating_add(1);
        Ok(())
    }

    /// The next completion of the ring; its slot becomes free.
    fn reap(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let tag = u16::try_from(entry.user_data()).ok()?;
        let slot = self.slots.get_mut(usize::from(tag))?;
        slot.busy = false;
        slot.memory = None;
        self.in_flight = self.in_flight.saturating_sub(1);
        let result = usize::try_from(entry.result())
            .map_err(|_| io::Error::from_raw_os_error(entry.result().saturating_neg()));
        Some(Completion { tag, result })
    }

    fn enter(&mut self, wait_for: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(wait_for) {
                // An entry that is wrong in itself ends a batch early, with a completion of its own.
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for all that is in flight and keeps what came of it for `complete`.
    fn quiesce(&mut self) -> io::Result<()> {
        while self.in_flight > 0 {
            self.enter(1)?;
            while let Some(completion) = self.reap() {
                self.at_once.push(completion);
            }
        }
        Ok(())
    }
}

impl Engine for UringEngine {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let begun = match &operation {
            Operation::Read { offset, data } if self.file.way(data, *offset) == Way::Straight => {
                self.move_data(tag, *offset, data, |file, iovecs| {
                    opcode::Readv::new(file, iovecs.as_ptr(), iovecs.count())
                        .offset(*offset)
                        .build()
                })
            }
            Operation::Write { offset, data }
                if self.file.is_direct() && self.file.way(data, *offset) == Way::Straight =>
            {
                self.move_data(tag, *offset, data, |file, iovecs| {
                    opcode::Writev::new(file, iovecs.as_ptr(), iovecs.count())
                        .offset(*offset)
                        .build()
                })
            }
            Operation::Sync => self.sync(tag),
            Operation::Write { .. } if !self.file.is_direct() => {
                return self.at_once.begin(tag, operation);
            }
            // Some of these must be alone (see `Way::Cache`), and all are rare.
            _ => match self.quiesce() {
                Ok(()) => return self.at_once.begin(tag, operation),
                Err(error) => Err(error),
            },
        };
        if let Err(error) = begun {
            self.at_once.push(Completion { tag, result: Err(error) });
        }
    }

    fn submit(&mut self) -> io::Result<()> {
        if self.ring.submission().is_empty() { Ok(()) } else { self.enter(0) }
    }

    fn complete(&mut self) -> Option<Completion> {
        self.at_once.complete().or_else(|| self.reap())
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the ring owns its descriptor, and the borrow of `self` keeps the ring.
        Some(unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) })
    }

    fn drain(&mut self) -> io::Result<()> {
        self.quiesce()
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        if self.quiesce().is_err() {
            // The kernel may go on with what is in flight: what that needs must stay.
            mem::forget(mem::take(&mut self.slots));
        }
    }
}

impl fmt::Debug for UringEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UringEngine").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}
