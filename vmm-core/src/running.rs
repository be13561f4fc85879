use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use sparkler_devices::serial::OutputBuffer;

use crate::console::ConsoleThreads;
use crate::control::Control;
use crate::machine::Machine;
use crate::timeline::Milestone;
use crate::{Outcome, RunError, Timeline};

/// A machine whose guest runs.
///
/// Dropping it stops the guest, whatever it does, and joins the machine's threads, within a second.
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

/// Counters of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Bytes that the guest printed and that were dropped, because the console's writer was too slow, or
    /// failed.
    pub console_output_dropped: u64,
}

impl RunningVm {
    /// Waits until the machine has ended, and says how. By then its threads are joined and its console
    /// output is written, as far as the writer takes it (see [`Console`](crate::Console)).
    ///
    /// May be called again, and from several threads: all get the same answer.
    ///
    /// # Errors
    /// [`RunError`] if the *monitor* failed. Whatever a guest does is an [`Outcome`].
    pub fn wait(&self) -> Result<Outcome, RunError> {
        let end = self.control.wait();
        self.join(matches!(end, Ok(Outcome::Stopped)));
        end
    }

    /// A handle that stops the machine from any thread.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { control: Arc::clone(&self.control) }
    }

    /// What happened so far; after [`wait`](Self::wait), all that happened.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.control.recorder().snapshot()
    }

    /// The counters as they are now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats { console_output_dropped: self.console_output.dropped() }
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

    /// Joins all threads, once: the vCPUs first, while those that serve them still run.
    fn join(&self, hurry: bool) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        if threads.vcpus.is_empty() {
            return;
        }
        for vcpu in threads.vcpus.drain(..) {
            // A device of the caller's own may hold and drop the machine, on a vCPU's thread. That thread
            // cannot wait for itself; it is about to end.
            if vcpu.thread().id() != thread::current().id() {
                // Panics are caught in the thread and are in `control` by now.
                drop(vcpu.join());
            }
        }
        self.machine.virtio.stop();
        threads.console.finish(hurry);
        // Should its thread be stuck in the writer, what is left here is lost.
        self.console_output.close();
        self.control.recorder().record(Milestone::TornDown);
    }
}

impl Drop for RunningVm {
    fn drop(&mut self) {
        self.control.end(Ok(Outcome::Stopped));
        self.join(true);
    }
}

/// Stops a machine; for any thread, any number of times. Holds no resource of the machine.
#[derive(Debug, Clone)]
pub struct StopHandle {
    control: Arc<Control>,
}

impl StopHandle {
    /// Makes the guest stop where it is. If it has not ended by itself before, its outcome is
    /// [`Outcome::Stopped`]. Returns at once; [`RunningVm::wait`] waits for the end.
    pub fn stop(&self) {
        self.control.end(Ok(Outcome::Stopped));
    }
}
