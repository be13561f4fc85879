//! How a machine's threads agree on what happens: run, stand still, start anew, end.

use std::any::Any;
use std::io;
use std::time::{Duration, Instant};

use crate::sync::{AtomicBool, Condvar, Mutex, MutexGuard, Ordering, PoisonError};
use crate::sys::signal::{self, ThreadId};
use crate::sys::wake::Wake;
use crate::timeline::{Milestone, Recorder};
use crate::{ControlError, Outcome, RunError, VmState};

/// What a machine's threads share: what is wanted of them, how it ended, and the means to be heard.
///
/// Each vCPU's thread looks at [`is_wanted`](Self::is_wanted) before it enters the guest, and if so goes to
/// [`park`](Self::park). Whoever wants something says so in the state first, then sets the flag, and then
/// kicks every vCPU out of the guest: a vCPU that has consumed its kick finds the flag set.
///
/// The first to say how the machine ended is heard, be it the guest, the host, or a failing thread. An end
/// goes before everything else: whoever waits for something else hears of it.
#[derive(Debug)]
pub(crate) struct Control {
    /// No vCPU may enter the guest without a look at the state.
    wanted: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    ended: Wake,
    vcpus: Vec<Mutex<Option<ThreadId>>>,
    /// Held by whoever pauses, resumes or resets the machine, one after the other.
    turn: Mutex<()>,
    /// Held by whoever has a look at the machine, for no longer than that takes.
    look: Mutex<()>,
    recorder: Recorder,
}

#[derive(Debug, Default)]
struct State {
    end: Option<Result<Outcome, RunError>>,
    paused: bool,
    reset: Reset,
    /// How often it was reset and started anew.
    restarts: u64,
    /// The vCPUs whose threads are in `park`.
    parked: usize,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Reset {
    #[default]
    None,
    /// As soon as all vCPUs are parked.
    Wanted,
    /// By one of the parked threads.
    Underway,
}

impl State {
    fn wants(&self) -> bool {
        self.end.is_some() || self.paused || self.reset != Reset::None
    }
}

impl Control {
    pub(crate) fn new(vcpus: u8, recorder: Recorder) -> io::Result<Self> {
        Ok(Self {
            wanted: AtomicBool::new(false),
            state: Mutex::new(State::default()),
            changed: Condvar::new(),
            ended: Wake::new()?,
            vcpus: (0..vcpus).map(|_| Mutex::new(None)).collect(),
            turn: Mutex::new(()),
            look: Mutex::new(()),
            recorder,
        })
    }

    /// Ends the machine. False: it has ended already.
    pub(crate) fn end(&self, how: Result<Outcome, RunError>) -> bool {
        let mut state = lock(&self.state);
        let first = state.end.is_none();
        if first {
            self.recorder.record(Milestone::Ended);
            state.end = Some(how);
            self.announce(&state);
            self.ended.wake();
        }
        first
    }

    /// Whether the machine has ended, or is about to.
    pub(crate) fn is_ending(&self) -> bool {
        self.is_wanted() && lock(&self.state).end.is_some()
    }

    /// Waits until the machine has ended. Its threads may still be on their way out.
    pub(crate) fn wait(&self) -> Result<Outcome, RunError> {
        let mut state = lock(&self.state);
        loop {
            match &state.end {
                Some(how) => return how.clone(),
                None => state = self.changed(state),
            }
        }
    }

    /// As [`wait`](Self::wait), but not for longer than `timeout`.
    pub(crate) fn wait_timeout(&self, timeout: Duration) -> Option<Result<Outcome, RunError>> {
        // A time that cannot be told is never reached.
        let Some(deadline) = Instant::now().checked_add(timeout) else { return Some(self.wait()) };
        let mut state = lock(&self.state);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if state.end.is_some() || left.is_zero() {
                return state.end.clone();
            }
            let wait = self.changed.wait_timeout(state, left);
            state = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Gets readable, for good, when the machine ends.
    pub(crate) fn ended(&self) -> &Wake {
        &self.ended
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// For whoever changes more than the vCPUs at a time.
    pub(crate) fn turn(&self) -> MutexGuard<'_, ()> {
        lock(&self.turn)
    }

    /// For whoever only looks at the machine, and waits for nobody.
    pub(crate) fn look(&self) -> MutexGuard<'_, ()> {
        lock(&self.look)
    }

    /// Keeps the vCPUs out of the guest, and waits until they are.
    pub(crate) fn pause(&self) -> Result<(), ControlError> {
        let mut state = lock(&self.state);
        if !state.paused {
            state.paused = true;
            self.announce(&state);
        }
        while state.end.is_none() && !(self.all_parked(&state) && state.reset == Reset::None) {
            state = self.changed(state);
        }
        not_ended(&state)
    }

    /// Lets the vCPUs go on.
    pub(crate) fn resume(&self) -> Result<(), ControlError> {
        let mut state = lock(&self.state);
        state.paused = false;
        self.revoke(&state);
        not_ended(&state)
    }

    pub(crate) fn state(&self) -> VmState {
        let state = lock(&self.state);
        match (&state.end, state.paused) {
            (Some(_), _) => VmState::Ended,
            (None, true) => VmState::Paused,
            (None, false) => VmState::Running,
        }
    }

    /// Asks for a reset: when all vCPUs are parked, one of their threads starts the machine anew.
    pub(crate) fn request_reset(&self) {
        self.want_reset(&mut lock(&self.state));
    }

    /// Asks for a reset and waits until it is done.
    pub(crate) fn reset(&self) -> Result<(), ControlError> {
        let mut state = lock(&self.state);
        // One that is under way already will do: it ends after this call has begun.
        let before = state.restarts;
        self.want_reset(&mut state);
        while state.end.is_none() && state.restarts == before {
            state = self.changed(state);
        }
        not_ended(&state)
    }

    fn want_reset(&self, state: &mut State) {
        if state.end.is_none() && state.reset == Reset::None {
            state.reset = Reset::Wanted;
            self.announce(state);
        }
    }

    /// Makes the calling thread that of vCPU `index`: signals are blocked in it, and it can be kicked
    /// until the returned value is dropped.
    pub(crate) fn enter_vcpu_thread(&self, index: u8) -> io::Result<VcpuThread<'_>> {
        signal::block_signals()?;
        let slot = self.vcpus.get(usize::from(index)).ok_or(io::ErrorKind::InvalidInput)?;
        *lock(slot) = Some(ThreadId::current());
        Ok(VcpuThread(slot))
    }

    /// Whether the calling thread is one of the vCPUs'.
    pub(crate) fn is_vcpu_thread(&self) -> bool {
        let current = ThreadId::current();
        self.vcpus.iter().any(|vcpu| *lock(vcpu) == Some(current))
    }

    /// Whether a vCPU must [`park`](Self::park) before it enters the guest.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// A vCPU's thread stays here while its vCPU must not enter the guest. False: never again.
    ///
    /// If a reset is wanted, the first thread to see that all are here calls `restart`. The others stay.
    pub(crate) fn park(&self, restart: impl Fn() -> Result<(), RunError>) -> bool {
        let mut state = lock(&self.state);
        state.parked = state.parked.saturating_add(1);
        self.changed.notify_all();
        while state.end.is_none() && (state.paused || state.reset != Reset::None) {
            if state.reset != Reset::Wanted || !self.all_parked(&state) {
                state = self.changed(state);
                continue;
            }
            state.reset = Reset::Underway;
            drop(state);
            if let Err(error) = restart() {
                self.end(Err(error));
            }
            state = lock(&self.state);
            state.reset = Reset::None;
            state.restarts = state.restarts.saturating_add(1);
            self.revoke(&state);
        }
        state.parked = state.parked.saturating_sub(1);
        state.end.is_none()
    }

    /// Makes every thread look at the state, which wants something.
    fn announce(&self, _state: &State) {
        // Before the kicks: a vCPU that consumes its kick must find the flag set.
        self.wanted.store(true, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            let thread = lock(vcpu);
            if let Some(thread) = *thread {
                // SAFETY: the thread takes its id out under this lock before it ends (`VcpuThread`).
                unsafe { thread.kick() };
            }
        }
        self.changed.notify_all();
    }

    /// Something is wanted no longer.
    fn revoke(&self, state: &State) {
        self.wanted.store(state.wants(), Ordering::SeqCst);
        self.changed.notify_all();
    }

    fn all_parked(&self, state: &State) -> bool {
        state.parked == self.vcpus.len()
    }

    fn changed<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed.wait(state).unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a machine ends when one of its threads has panicked.
pub(crate) fn panicked(thread: &str, panic: &(dyn Any + Send)) -> RunError {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    let message = text.unwrap_or("no message").to_owned();
    RunError::Panicked { thread: thread.to_owned(), message }
}

fn not_ended(state: &State) -> Result<(), ControlError> {
    if state.end.is_none() { Ok(()) } else { Err(ControlError::Ended) }
}

/// The calling thread can be kicked as long as this lives.
pub(crate) struct VcpuThread<'a>(&'a Mutex<Option<ThreadId>>);

impl Drop for VcpuThread<'_> {
    fn drop(&mut self) {
        *lock(self.0) = None;
    }
}

/// What the locks guard is valid after every step, so a panic elsewhere cannot spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
