use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use sparkler_devices::serial::OutputBuffer;

use crate::console::ConsoleThreads;
use crate::control::Control;
use crate::machine::Machine;
use crate::timeline::Milestone;
use crate::{Outcome, RunError, Stats, Timeline, VmHandle};

/// A machine whose guest runs.
///
/// Dropping it stops the guest at once, whatever it does, and joins the machine's threads, within a second;
/// longer only if a disk's file, or a device of the caller's own, is slow to finish a request in progress.
/// Where one of these threads drops it, in a device of the caller's own, they end by themselves soon after.
///
/// ```no_run
/// use std::time::Duration;
/// use sparkler::{Kernel, Outcome, Vm};
///
/// let vm = Vm::builder().kernel(Kernel::file("/boot/vmlinuz")?).build()?;
/// let running = vm.start()?;
/// match running.wait_timeout(Duration::from_secs(10))? {
///     Some(Outcome::Exited(code)) => println!("the guest's exit code is {code}"),
///     Some(Outcome::Crashed(crash)) => println!("{crash}"),
///     Some(outcome) => println!("{outcome}"),
///     None => println!("{} bytes of memory in use so far", running.stats().memory_resident),
/// }
/// // It is stopped, if it was not over.
/// drop(running);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RunningVm {
    threads: Mutex<Threads>,
    console_output: Arc<OutputBuffer>,
    control: Arc<Control>,
    machine: Arc<Machine>,
}

#[derive(Debug)]
struct Threads {
    vcpus: Vec<JoinHandle<()>>,
    console: ConsoleThreads,
}

impl RunningVm {
    /// Waits until the machine has ended, and says how. By then its threads are joined and its console
    /// output is written, as far as the writer takes it (see [`Console`](crate::Console)).
    ///
    /// May be called again, and from several threads: all get the same answer.
    ///
    /// # Errors
    /// [`RunError`] if the *monitor* failed. Whatever a guest does is an [`Outcome`].
    /// [`RunError::OwnThread`] on a thread of a vCPU or of a device of this machine.
    pub fn wait(&self) -> Result<Outcome, RunError> {
        if self.is_own_thread() {
            return Err(RunError::OwnThread);
        }
        let end = self.control.wait();
        self.join(matches!(end, Ok(Outcome::Stopped)));
        end
    }

    /// As [`wait`](Self::wait), if the machine ends within `timeout`; otherwise `None`. Tear-down, which
    /// then follows, is not counted. `Duration::ZERO` only looks.
    ///
    /// # Errors
    /// As of [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Outcome>, RunError> {
        if self.is_own_thread() {
            return Err(RunError::OwnThread);
        }
        match self.control.wait_timeout(timeout) {
            Some(_) => self.wait().map(Some),
            None => Ok(None),
        }
    }

    /// A handle that stops, pauses, resumes, resets the machine from any thread.
    #[must_use]
    pub fn handle(&self) -> VmHandle {
        VmHandle::new(Arc::clone(&self.control), &self.machine)
    }

    /// What happened so far; after [`wait`](Self::wait), all that happened.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.control.recorder().snapshot()
    }

    /// The counters as they are now. Nobody is held up by that.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { console_output_dropped: self.console_output.dropped(), ..self.machine.stats() }
    }

    pub(crate) fn new(
        vcpus: Vec<JoinHandle<()>>,
        machine: Arc<Machine>,
        control: Arc<Control>,
        console_output: Arc<OutputBuffer>,
    ) -> Self {
        let threads = Mutex::new(Threads { vcpus, console: ConsoleThreads::default() });
        Self { threads, console_output, control, machine }
    }

    pub(crate) fn attach(&self, console: ConsoleThreads) {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner).console = console;
    }

    /// Whether the calling thread is one that [`join`](Self::join) would wait for.
    fn is_own_thread(&self) -> bool {
        self.control.is_vcpu_thread() || self.machine.virtio.is_own_thread()
    }

    /// Joins all threads, once: the vCPUs first, while those that serve them still run.
    fn join(&self, hurry: bool) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.vcpus.is_empty() {
            return;
        }
        for vcpu in threads.vcpus.drain(..) {
            // Panics are caught in the thread and are in `control` by now.
            drop(vcpu.join());
        }
        self.machine.virtio.stop();
        // Whoever was at pausing the machine, or the like, hears of its end and lets go of it.
        drop(self.control.look());
        drop(self.control.turn());
        threads.console.finish(hurry);
        // Should its thread be stuck in the writer, what is left here is lost.
        self.console_output.close();
        self.control.recorder().record(Milestone::TornDown);
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.control.end(Ok(Outcome::Stopped));
        // A device of the caller's own may hold and drop the machine, on a thread of the machine. That thread
        // cannot wait for itself, nor for those that wait for it: the last to end takes all down.
        if !self.is_own_thread() {
            self.join(true);
        }
    }
}

/// The descriptor gets readable when the machine has ended, and stays so; nothing is to be read from it.
/// From then on, [`wait`](RunningVm::wait) takes only as long as tear-down does.
///
/// So asynchronous code waits without a thread. With tokio, for one: wrap the machine by
/// `AsyncFd::with_interest(running, Interest::READABLE)`, await its `readable()`, then call `wait` in
/// `spawn_blocking`. Event loops on `poll` or `epoll` take the descriptor as it is.
impl AsFd for RunningVm {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.control.ended().as_fd()
    }
}

/// As by [`AsFd`], for those who ask for a number.
impl AsRawFd for RunningVm {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}
