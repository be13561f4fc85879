//! The built-in guest, run for its result.

use std::{
    io::{self, Write},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{RecvTimeoutError, channel},
    },
    time::Duration,
};

use sparkler::{Console, Kernel, MemorySize, Outcome, Timeline, Vm};

use crate::report::Failure;
use crate::threads;

/// A host on which the built-in guest takes longer is broken. The slowest known takes a second.
const TIME_LIMIT: Duration = Duration::from_secs(30);

/// The most that is kept of what it prints.
const PRINTED_MAX: usize = 64 << 10;

/// What the built-in guest is to do, and on what machine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Job {
    pub(crate) cmdline: &'static str,
    pub(crate) vcpus: u32,
    pub(crate) memory: MemorySize,
}

/// What came of it.
pub(crate) struct Done {
    pub(crate) outcome: Outcome,
    pub(crate) timeline: Timeline,
    pub(crate) printed: String,
}

impl Job {
    pub(crate) fn run(self) -> Result<Done, Failure> {
        let printed = Printed::default();
        let vm = Vm::builder()
            .vcpus(self.vcpus)
            .memory(self.memory)
            .cmdline(self.cmdline)
            .kernel(Kernel::bytes(sparkler_guest::ELF))
            .console(Console::output(printed.clone()))
            .build()
            .map_err(Failure::refused)?;
        let running = vm.start().map_err(Failure::failed)?;
        let stop = running.handle();
        let (ended, end) = channel::<()>();
        let watch = move || {
            if end.recv_timeout(TIME_LIMIT) == Err(RecvTimeoutError::Timeout) {
                stop.stop();
            }
        };
        threads::spawn("time limit", watch).map_err(Failure::failed)?;
        let outcome = running.wait().map_err(Failure::failed)?;
        drop(ended);
        Ok(Done { outcome, timeline: running.timeline(), printed: printed.text() })
    }
}

/// Collects the guest's console output.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = PRINTED_MAX.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
