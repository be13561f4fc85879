use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use sparkler_devices::THREAD_STACK_SIZE;

use crate::StartError;
use crate::control::{Control, panicked};
use crate::placement::Threads;
use crate::sys::signal;
use crate::sys::wake::Wake;

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
    /// Of the thread, for log lines.
    pub(super) name: Arc<str>,
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
        placed: &Arc<Threads>,
        control: &Arc<Control>,
        work: impl FnOnce(&WorkerState) + Send + 'static,
    ) -> Result<Self, StartError> {
        let state = WorkerState {
            name: placed.full_name(name).into(),
            wake,
            finishing: Arc::default(),
            abandoned: Arc::default(),
            progress: Arc::default(),
            uninterruptible: Arc::default(),
        };
        let (alive, ended) = channel::<()>();
        let of_thread = state.clone();
        let (control, thread_name) = (Arc::clone(control), name.to_owned());
        let placed = Arc::clone(placed);
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .stack_size(THREAD_STACK_SIZE)
            .spawn(move || {
                // Dropped when the thread ends, also by a panic: that is what `ended` hears.
                let _alive = alive;
                placed.enter_if_possible(&thread_name);
                if let Err(error) = signal::block_signals() {
                    // The process's signal handlers may then run here. Bytes move all the same.
                    log::warn!("cannot block signals in the thread {}: {error}", of_thread.name);
                }
                // What it may leave half-done, nobody uses any more: the machine ends.
                if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| work(&of_thread))) {
                    control.end(Err(panicked(&thread_name, &*panic)));
                }
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
            let name = &self.state.name;
            log::debug!("{name} is stuck in its reader or writer and is left behind");
            return;
        }
        let _ = self.thread.join(); // A panic is in `control`.
    }
}
