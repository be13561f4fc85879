//! A machine changes nothing in its process but what it was asked to. One test: it compares the state of
//! the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use sparkler::{Console, Kernel, MemorySize, Vm};

use crate::common::{Captured, guest};

#[derive(Debug, PartialEq, Eq)]
struct ProcessState {
    /// Signal dispositions (ignored, caught) and what this thread blocks, as the kernel tells.
    signals: Vec<String>,
    /// Of the pseudo-terminal that the console is on.
    terminal: String,
    umask: String,
    cwd: std::path::PathBuf,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    limits: String,
}

fn state(terminal: &impl AsRawFd) -> ProcessState {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let lines = |prefix: &str| {
        status
            .lines()
            .filter(|line| line.starts_with(prefix))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // SAFETY: an all-zero termios is a valid one to be overwritten.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: the descriptor is open, and `termios` is ours to be written.
    assert_eq!(unsafe { libc::tcgetattr(terminal.as_raw_fd(), &mut termios) }, 0);
    ProcessState {
        signals: ["SigBlk", "SigIgn", "SigCgt"].iter().flat_map(|name| lines(name)).collect(),
        terminal: format!("{termios:?}"),
        umask: lines("Umask").concat(),
        cwd: std::env::current_dir().unwrap(),
        environment: std::env::vars_os().collect(),
        limits: fs::read_to_string("/proc/self/limits").unwrap(),
    }
}

fn pseudo_terminal() -> (fs::File, fs::File) {
    let master = fs::File::options().read(true).write(true).open("/dev/ptmx").unwrap();
    let mut number: libc::c_int = 0;
    let unlock: libc::c_int = 0;
    // SAFETY: both requests are for a pseudo-terminal's master and take a pointer to an int.
    unsafe {
        assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &unlock), 0);
        assert_eq!(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTN, &mut number), 0);
    }
    let slave = fs::File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NOCTTY)
        .open(format!("/dev/pts/{number}"))
        .unwrap();
    (master, slave)
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_process_is_the_same_before_and_after() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(panic);
    }));
    let (_master, slave) = pseudo_terminal();
    let before = state(&slave);

    let endings = ["code=0", "end=reset", "end=poweroff", "end=triple", "test=hang", "test=halt"];
    for cmdline in endings {
        let console = Console::pollable(slave.try_clone().unwrap(), slave.try_clone().unwrap());
        let vm = guest(cmdline).vcpus(2).console(console).build().unwrap();
        let running = vm.start().unwrap();
        if !cmdline.starts_with("test=h") {
            running.wait().unwrap();
        }
        // While it runs, too.
        assert_eq!(state(&slave).signals, before.signals);
    }
    // A machine that cannot be built, and one that panics on the console.
    let text = Kernel::bytes(&b"not a kernel"[..]);
    assert!(Vm::builder().memory(MemorySize::mib(16)).kernel(text).build().is_err());
    let captured = Captured::default();
    guest("code=1").console(captured.console()).build().unwrap().start().unwrap().wait().unwrap();

    assert_eq!(state(&slave), before);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0);
    assert!(log::max_level() == log::LevelFilter::Off, "somebody installed a logger");
    let ours = std::panic::catch_unwind(|| panic!("for the hook"));
    assert!(ours.is_err());
    assert_eq!(PANICS.load(Ordering::SeqCst), 1, "the panic hook is still ours");
}
