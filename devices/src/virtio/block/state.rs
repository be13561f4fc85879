use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::super::Waker;
use super::error::{DiskError, DiskName};
use super::file::DiskFile;
use super::request::SECTOR;
use super::stats::{Counters, DiskStats};

/// What can be done with a disk from outside, while a machine uses it. Clones are the same handle.
#[derive(Debug, Clone)]
pub struct DiskHandle(pub(super) Arc<State>);

impl DiskHandle {
    /// Looks at the size of the file or block device again and tells the guest what it is now.
    /// Returns it in bytes. To resize a disk, resize the file, then call this.
    ///
    /// # Errors
    /// [`DiskError::Inspect`] or [`DiskError::Empty`], and nothing has changed;
    /// [`DiskError::NoFile`] if the disk has an engine of its own (see [`set_size`](Self::set_size)),
    /// or is no longer there.
    pub fn refresh(&self) -> Result<u64, DiskError> {
        let file = self.0.file.as_ref().and_then(Weak::upgrade).ok_or(DiskError::NoFile)?;
        let disk = || self.0.name.clone();
        let size = file.size().map_err(|source| DiskError::Inspect { disk: disk(), source })?;
        if size == 0 {
            return Err(DiskError::Empty { disk: disk() });
        }
        self.set_size(size);
        Ok(size)
    }

    /// Tells the guest that the disk has this many bytes now. For storage of one's own; nothing but
    /// the announcement changes.
    pub fn set_size(&self, bytes: u64) {
        self.0.set_size(bytes);
    }

    /// What the disk has done so far.
    #[must_use]
    pub fn stats(&self) -> DiskStats {
        self.0.counters.snapshot()
    }
}

/// What the worker, the vCPUs that read the configuration and the handles share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) name: DiskName,
    pub(super) counters: Counters,
    /// None if the disk has an engine of its own. A handle does not keep it open.
    file: Option<Weak<DiskFile>>,
    /// The size in bytes, for the worker. Only changed with `announced` locked.
    size: AtomicU64,
    announced: Mutex<Announced>,
    /// The driver was not told yet of a new size.
    changed: AtomicBool,
    /// The driver's choice, if it may choose: complete writes may stay in a cache until a flush.
    writeback: AtomicBool,
    waker: Mutex<Option<Waker>>,
    failed: AtomicBool,
}

/// What the driver reads. Size and generation change together, or it could mix up two sizes.
#[derive(Debug, Clone, Copy)]
struct Announced {
    capacity: u64,
    generation: u32,
}

impl State {
    pub(super) fn new(name: DiskName, size: u64, file: Option<Weak<DiskFile>>) -> Self {
        Self {
            name,
            counters: Counters::default(),
            file,
            size: AtomicU64::new(size),
            announced: Mutex::new(Announced { capacity: capacity(size), generation: 0 }),
            changed: AtomicBool::new(false),
            writeback: AtomicBool::new(true),
            waker: Mutex::new(None),
            failed: AtomicBool::new(false),
        }
    }

    pub(super) fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Capacity in sectors as the driver reads it.
    pub(super) fn capacity(&self) -> u64 {
        lock(&self.announced).capacity
    }

    pub(super) fn generation(&self) -> u32 {
        lock(&self.announced).generation
    }

    /// Whether the size has changed since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub(super) fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        *lock(&self.waker) = Some(waker);
    }

    /// Whether nothing has failed on the host's side before, in any session: a guest could bring about
    /// failures without end.
    pub(super) fn is_first_failure(&self) -> bool {
        !self.failed.swap(true, Ordering::Relaxed)
    }

    fn set_size(&self, bytes: u64) {
        let mut announced = lock(&self.announced);
        self.size.store(bytes, Ordering::Relaxed);
        announced.capacity = capacity(bytes);
        announced.generation = announced.generation.wrapping_add(1);
        drop(announced);
        self.changed.store(true, Ordering::Release);
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake();
        }
    }
}

/// Sectors of a disk of so many bytes; a last one that is not full counts.
pub(super) fn capacity(size: u64) -> u64 {
    size.div_ceil(SECTOR)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is valid after every step, so a panic elsewhere cannot spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
