use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use super::shared::Stopping;

/// Where a device's thread and whoever pauses the machine meet: the thread stands still in here, at a point
/// where it has nothing in progress.
#[derive(Debug, Default)]
pub(super) struct Pause {
    /// As in the state; for a look without the lock.
    wanted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wanted: bool,
    /// There is a session, and it does not stand still.
    active: bool,
    /// Of the session.
    thread: Option<ThreadId>,
}

impl Pause {
    /// Whether the device's thread is to stand still as soon as it can.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// The thread must be woken afterwards, to see it.
    pub(super) fn set_wanted(&self, wanted: bool) {
        let mut state = self.lock();
        state.wanted = wanted;
        self.wanted.store(wanted, Ordering::SeqCst);
        drop(state);
        self.changed.notify_all();
    }

    /// Waits until the device's thread stands still, or is none. False if that takes longer than `timeout`.
    pub(super) fn wait(&self, timeout: Duration) -> bool {
        // A time that cannot be told is never reached.
        let deadline = Instant::now().checked_add(timeout);
        let mut state = self.lock();
        while state.active {
            let left =
                deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return false;
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// A session begins: its thread is about to run.
    pub(super) fn begin_session(&self) {
        self.lock().active = true;
    }

    /// The calling thread is that of the session.
    pub(super) fn enter_thread(&self) {
        self.lock().thread = Some(thread::current().id());
    }

    /// The session has ended.
    pub(super) fn end_session(&self) {
        let mut state = self.lock();
        state.active = false;
        state.thread = None;
        drop(state);
        self.changed.notify_all();
    }

    /// Whether the calling thread is that of the session.
    pub(super) fn is_own_thread(&self) -> bool {
        self.lock().thread == Some(thread::current().id())
    }

    /// Stands still until the pause is over or the session is to end.
    pub(super) fn stand_still(&self, stopping: &Stopping) {
        let mut state = self.lock();
        while state.wanted && !stopping.get() {
            if std::mem::replace(&mut state.active, false) {
                self.changed.notify_all();
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.active = true;
    }

    /// The session is to end: its thread must not stand still any more.
    pub(super) fn wake(&self) {
        // With the lock: not between the look at `stopping` and the wait.
        let _state = self.lock();
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Valid after every step, so a panic elsewhere cannot spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
