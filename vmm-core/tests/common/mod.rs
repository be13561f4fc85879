//! What the tests on KVM share.

// Each test file uses a part of it.
#![allow(dead_code)]

pub(crate) mod disks;
pub(crate) mod holdings;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sparkler::{Console, Kernel, MemorySize, Outcome, Vm, VmBuilder};

/// The lab's processor is emulated: there, everything takes many times as long.
pub(crate) fn emulated() -> bool {
    std::env::var_os("SPARKLER_EMULATED").is_some()
}

/// How long a drop may take: a second, times the number of threads that each processor has to share
/// among, spinning guests of the test itself included.
pub(crate) fn drop_limit() -> Duration {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap();
    let runnable = load.split([' ', '/']).nth(3).unwrap().parse::<u32>().unwrap();
    let processors = u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
    let factor = if emulated() { 20 } else { 1 };
    Duration::from_secs(1) * factor * runnable.div_ceil(processors).max(1)
}

/// A machine with the built-in guest, which does what `cmdline` says.
pub(crate) fn guest(cmdline: &str) -> VmBuilder {
    Vm::builder()
        .memory(MemorySize::mib(16))
        .kernel(Kernel::bytes(sparkler_guest::ELF))
        .cmdline(cmdline)
}

/// Runs the built-in guest to its end.
pub(crate) fn run(cmdline: &str) -> Outcome {
    guest(cmdline).build().unwrap().start().unwrap().wait().unwrap()
}

/// Collects what a guest prints.
#[derive(Clone, Default)]
pub(crate) struct Captured(Arc<Mutex<Vec<u8>>>);

impl Captured {
    pub(crate) fn console(&self) -> Console {
        Console::output(self.clone())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Captured {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
