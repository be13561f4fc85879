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

/// What a machine that stands still does meanwhile: what it counts, and where its threads are, twice. It
/// tells a guest that waits for ever from one that runs in circles, and a lost notification (the device
/// waits, the guest too) from either.
pub(crate) fn what_moves(running: &sparkler::RunningVm) -> String {
    let look = || {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|task| {
            let read = |name| std::fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let stat = read("stat");
            let fields: Vec<_> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
            // State, and ticks in user mode, in the kernel, in guests (proc(5)).
            let of = |number: usize| *fields.get(number - 2).unwrap_or(&"?");
            let (state, user, kernel, guest) = (of(3), of(14), of(15), of(43));
            format!(
                "{}: {state} {user} {kernel} {guest} {}\n",
                read("comm").trim(),
                read("wchan").trim()
            )
        });
        format!("{:?}\n{}", running.stats(), threads.collect::<String>())
    };
    let before = look();
    // Long enough for anything that moves to be seen to.
    std::thread::sleep(Duration::from_secs(5));
    format!("{before}5 s later:\n{}", look())
}
