use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::StartError;
use crate::sys::signal;

/// Wakes a worker out of its `poll`.
#[derive(Debug, Clone)]
pub(crate) struct Wake(Arc<EventFd>);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }

    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then it is readable anyway.
        let _ = self.0.write(1);
    }

    /// Forgets the wake-ups so far.
    pub(super) fn clear(&self) {
        let _ = self.0.read();
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the borrow of `self` lasts.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}

/// A thread that moves bytes, and can be asked to finish.
#[derive(Debug)]
pub(super) struct Worker {
    thread: JoinHandle<()>,
    state: WorkerState,
    ended: Receiver<()>,
}

/// What a worker and its owner share.
#[derive(Debug, Clone)]
pub(super) struct WorkerState {
    pub(super) wake: Wake,
    finishing: Arc<AtomicBool>,
    abandoned: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    uninterruptible: Arc<AtomicBool>,
}

impl WorkerState {
    /// Makes a call that may block for good and that nobody can interrupt: the owner does not wait for
    /// its end.
    pub(super) fn uninterruptible<T>(&self, call: impl FnOnce() -> T) -> T {
        self.uninterruptible.store(true, Ordering::SeqCst);
        let result = call();
        self.uninterruptible.store(false, Ordering::SeqCst);
        result
    }

    /// The owner wants the thread to finish what it has, and end.
    pub(super) fn is_finishing(&self) -> bool {
        self.finishing.load(Ordering::SeqCst)
    }

    /// The owner waits no longer.
    pub(super) fn is_abandoned(&self) -> bool {
        self.abandoned.load(Ordering::SeqCst)
    }

    /// Some bytes have moved.
    pub(super) fn progress(&self) {
        self.progress.fetch_add(1, Ordering::SeqCst);
    }
}

impl Worker {
    /// Runs `work` on a thread of its own, called `name`, with all signals blocked.
    pub(super) fn start(
        name: &str,
        wake: Wake,
        work: impl FnOnce(&WorkerState) + Send + 'static,
    ) -> Result<Self, StartError> {
        let state = WorkerState {
            wake,
            finishing: Arc::default(),
            abandoned: Arc::default(),
            progress: Arc::default(),
            uninterruptible: Arc::default(),
        };
        let (alive, ended) = channel::<()>();
        let of_thread = state.clone();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Dropped when the thread ends, also by a panic: that is what `ended` hears.
                let _alive = alive;
                if let Err(error) = signal::block_signals() {
                    // The process's signal handlers may then run here. Bytes move all the same.
                    log::warn!("cannot block signals in a console thread: {error}");
                }
                work(&of_thread);
            })
            .map_err(|source| StartError::Thread { name: name.to_owned(), source })?;
        Ok(Self { thread, state, ended })
    }

    /// Asks the thread to end and joins it. It may go on as long as no `patience` passes without
    /// progress, and with `hurry` for no longer than `patience` at all. A thread that is stuck in
    /// somebody else's `read` or `write` is left behind.
    pub(super) fn finish(self, patience: Duration, hurry: bool) {
        /// From "give up" to the end of a thread that is not stuck: much longer than it needs.
        const GRACE: Duration = Duration::from_millis(250);
        self.state.finishing.store(true, Ordering::SeqCst);
        self.state.wake.wake();
        let mut seen = self.state.progress.load(Ordering::SeqCst);
        while let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(patience) {
            let now = self.state.progress.load(Ordering::SeqCst);
            if now == seen || hurry {
                break;
            }
            seen = now;
        }
        self.state.abandoned.store(true, Ordering::SeqCst);
        self.state.wake.wake();
        let grace = match self.state.uninterruptible.load(Ordering::SeqCst) {
            true => Duration::ZERO,
            false => GRACE,
        };
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(grace) {
            log::debug!("a console thread is stuck in its reader or writer and is left behind");
            return;
        }
        if self.thread.join().is_err() {
            log::warn!("the reader or writer of a console panicked");
        }
    }
}
