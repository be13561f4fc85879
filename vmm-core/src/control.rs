use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use crate::sys::signal::{self, ThreadId};
use crate::timeline::{Milestone, Recorder};
use crate::{Outcome, RunError};

/// What a machine's threads share: how it ended, and the means to make it end.
///
/// The first to say how it ended is heard, be it the guest, the host, or a failing vCPU. From then on
/// `ending` is set, every vCPU is kicked, and no vCPU enters the guest again.
#[derive(Debug)]
pub(crate) struct Control {
    ending: AtomicBool,
    end: Mutex<Option<Result<Outcome, RunError>>>,
    ended: Condvar,
    vcpus: Vec<Mutex<Option<ThreadId>>>,
    recorder: Recorder,
}

impl Control {
    pub(crate) fn new(vcpus: u8, recorder: Recorder) -> Self {
        Self {
            ending: AtomicBool::new(false),
            end: Mutex::new(None),
            ended: Condvar::new(),
            vcpus: (0..vcpus).map(|_| Mutex::new(None)).collect(),
            recorder,
        }
    }

    /// Ends the machine, unless it has ended already.
    pub(crate) fn end(&self, how: Result<Outcome, RunError>) {
        {
            let mut end = lock(&self.end);
            if end.is_some() {
                return;
            }
            self.recorder.record(Milestone::Ended);
            *end = Some(how);
        }
        // Before the kicks: a vCPU that consumes its kick must find the flag set.
        self.ending.store(true, Ordering::SeqCst);
        for vcpu in &self.vcpus {
            let thread = lock(vcpu);
            if let Some(thread) = *thread {
                // SAFETY: the thread takes its id out under this lock before it ends (`VcpuThread`).
                unsafe { thread.kick() };
            }
        }
        self.ended.notify_all();
    }

    /// Whether the machine has ended, or is about to.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.load(Ordering::SeqCst)
    }

    /// Waits until the machine has ended. Its threads may still be on their way out.
    pub(crate) fn wait(&self) -> Result<Outcome, RunError> {
        let mut end = lock(&self.end);
        loop {
            match &*end {
                Some(how) => return how.clone(),
                None => end = self.ended.wait(end).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    pub(crate) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// Makes the calling thread that of vCPU `index`: signals are blocked in it, and it can be kicked
    /// until the returned value is dropped.
    pub(crate) fn enter_vcpu_thread(&self, index: u8) -> io::Result<VcpuThread<'_>> {
        signal::block_signals()?;
        let slot = self.vcpus.get(usize::from(index)).ok_or(io::ErrorKind::InvalidInput)?;
        *lock(slot) = Some(ThreadId::current());
        Ok(VcpuThread(slot))
    }
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
