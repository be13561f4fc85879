//! A machine changes nothing in its process but what it was asked to. One test: it compares the state of
//! the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::{DeviceError, Session, VirtioDevice};
use sparkler::{Console, Kernel, MemorySize, Outcome, ResetAction, RunError, Vm, VmBuilder};

use crate::common::{Captured, guest};

#[derive(Debug, PartialEq)]
struct ProcessState {
    /// What happens on each signal: handler, flags and mask.
    dispositions: Vec<(usize, libc::c_int, [u8; size_of::<libc::sigset_t>()])>,
    /// What this thread blocks, and what the process ignores and catches, as the kernel tells.
    signals: Vec<String>,
    /// Of the pseudo-terminal that the console is on, and of standard input, if it is one.
    terminals: Vec<Option<String>>,
    umask: String,
    cwd: std::path::PathBuf,
    environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    limits: String,
    /// How the process is treated by the scheduler, and which processors it may use.
    scheduling: (libc::c_int, String),
}

/// What the process holds.
#[derive(Debug, PartialEq)]
struct Holdings {
    /// What is behind each descriptor.
    fds: Vec<String>,
    threads: BTreeSet<String>,
    /// By what KVM's machines are seen in the address space.
    vcpus: usize,
}

fn status(prefix: &str) -> Vec<String> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().filter(|line| line.starts_with(prefix)).map(str::to_owned).collect()
}

fn state(terminal: &impl AsRawFd) -> ProcessState {
    ProcessState {
        dispositions: (1..=libc::SIGRTMAX()).filter_map(disposition).collect(),
        signals: ["SigBlk", "SigIgn", "SigCgt"].into_iter().flat_map(status).collect(),
        terminals: [terminal.as_raw_fd(), libc::STDIN_FILENO].map(terminal_mode).into(),
        umask: status("Umask").concat(),
        cwd: std::env::current_dir().unwrap(),
        environment: std::env::vars_os().collect(),
        limits: fs::read_to_string("/proc/self/limits").unwrap(),
        // SAFETY: it takes numbers only; 0 is this process.
        scheduling: (
            unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) },
            status("Cpus_allowed_list").concat(),
        ),
    }
}

fn disposition(
    signal: libc::c_int,
) -> Option<(usize, libc::c_int, [u8; size_of::<libc::sigset_t>()])> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a null new action asks only; `action` is ours to be filled. Two numbers are the C library's
    // own, and it refuses them.
    let result = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroes are a valid action, and the call leaves one.
    let action = unsafe { action.assume_init() };
    // SAFETY: the set is plain bytes, all of them initialized.
    let mask = unsafe { std::mem::transmute_copy(&action.sa_mask) };
    (result == 0).then_some((action.sa_sigaction, action.sa_flags, mask))
}

fn terminal_mode(fd: libc::c_int) -> Option<String> {
    // SAFETY: an all-zero termios is a valid one to be overwritten.
    let mut termios: libc::termios = unsafe { std::mem::zeroed() };
    // SAFETY: a descriptor that is no terminal is refused; `termios` is ours to be written.
    let result = unsafe { libc::tcgetattr(fd, &mut termios) };
    (result == 0).then(|| format!("{termios:?}"))
}

fn holdings() -> Holdings {
    let entries = |folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    // The one that lists them is among them, and is gone by now.
    let mut fds: Vec<_> = entries("/proc/self/fd")
        .filter_map(|fd| Some(fs::read_link(fd).ok()?.display().to_string()))
        .collect();
    fds.sort();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        fds,
        threads: entries("/proc/self/task").map(|task| task.display().to_string()).collect(),
        vcpus: maps.lines().filter(|line| line.contains("kvm-vcpu")).count(),
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

/// An entropy device that panics.
struct Panicking;

impl VirtioDevice for Panicking {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn run(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        panic!("as it was told to")
    }
}

/// What becomes of a machine.
enum Ending {
    /// It ends by itself, like this.
    Itself(fn(&Outcome) -> bool),
    Stopped,
    /// Paused, then stopped.
    PausedAndStopped,
    Dropped,
    /// Reset twice by the host, then stopped.
    Reset,
    /// Its power button is pressed when it has said that it waits for that.
    ShutDown,
    Panics,
}

/// Twenty machines, as what they are told, what becomes of them, and how many vCPUs they have.
fn machines() -> Vec<(&'static str, Ending, u32)> {
    let crashed = |outcome: &Outcome| matches!(outcome, Outcome::Crashed(_));
    vec![
        ("code=0", Ending::Itself(|outcome| *outcome == Outcome::Exited(0)), 1),
        ("code=255", Ending::Itself(|outcome| *outcome == Outcome::Exited(255)), 2),
        ("end=reset", Ending::Itself(|outcome| *outcome == Outcome::Reset), 2),
        ("end=acpi-reset", Ending::Itself(|outcome| *outcome == Outcome::Reset), 1),
        ("end=poweroff", Ending::Itself(|outcome| *outcome == Outcome::PowerOff), 2),
        ("end=triple", Ending::Itself(crashed), 2),
        ("test=crash", Ending::Itself(crashed), 1),
        ("test=print bytes=10000", Ending::Itself(|outcome| *outcome == Outcome::Exited(0)), 1),
        ("test=hang", Ending::Stopped, 2),
        ("test=halt", Ending::Stopped, 2),
        ("test=echo", Ending::Stopped, 1),
        ("test=hang", Ending::PausedAndStopped, 2),
        ("test=halt", Ending::PausedAndStopped, 1),
        ("test=hang", Ending::Dropped, 2),
        ("test=print bytes=100000000", Ending::Dropped, 1),
        ("end=reset", Ending::Reset, 2),
        ("test=hang", Ending::Reset, 4),
        ("test=button end=poweroff", Ending::ShutDown, 1),
        ("test=rng", Ending::Panics, 1),
        ("test=rng", Ending::Panics, 2),
    ]
}

fn live(builder: VmBuilder, captured: &Captured, ending: &Ending) {
    let builder = match ending {
        Ending::Reset => builder.on_reset(ResetAction::Restart),
        Ending::Panics => builder.device(Panicking),
        Ending::ShutDown => builder.console(captured.console()),
        _ => builder,
    };
    let running = builder.build().unwrap().start().unwrap();
    let handle = running.handle();
    match ending {
        Ending::Itself(allowed) => {
            let outcome = running.wait().unwrap();
            assert!(allowed(&outcome), "{outcome:?}");
        }
        Ending::Stopped => handle.stop(),
        Ending::PausedAndStopped => {
            handle.pause().unwrap();
            handle.stop();
        }
        Ending::Dropped => drop(running),
        Ending::Reset => {
            handle.reset().unwrap();
            handle.reset().unwrap();
            handle.stop();
        }
        Ending::ShutDown => {
            while !captured.text().contains("waiting") {
                assert_eq!(running.wait_timeout(Duration::from_millis(1)), Ok(None));
            }
            handle.shutdown().unwrap();
            assert_eq!(running.wait(), Ok(Outcome::PowerOff));
        }
        Ending::Panics => assert!(matches!(running.wait(), Err(RunError::Panicked { .. }))),
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn twenty_machines_leave_the_process_as_it_was() {
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        PANICS.fetch_add(1, Ordering::SeqCst);
        usual(panic);
    }));
    let (mut master, slave) = pseudo_terminal();
    // Somebody reads what the guests print: a terminal that is full may block whoever writes.
    thread::spawn(move || io::copy(&mut master, &mut io::sink()));
    let (before, held) = (state(&slave), holdings());

    for (cmdline, ending, vcpus) in &machines() {
        let console = Console::pollable(slave.try_clone().unwrap(), slave.try_clone().unwrap());
        live(guest(cmdline).vcpus(*vcpus).console(console), &Captured::default(), ending);
        assert_eq!(state(&slave), before, "after {cmdline}");
    }
    // While one runs, too.
    let running = guest("test=hang").vcpus(2).build().unwrap().start().unwrap();
    assert_eq!(state(&slave), before);
    drop(running);
    // A machine that cannot be built.
    let text = Kernel::bytes(&b"not a kernel"[..]);
    assert!(Vm::builder().memory(MemorySize::mib(16)).kernel(text).build().is_err());

    assert_eq!(state(&slave), before);
    // A joined thread may stay in the kernel's list for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    while holdings() != held && Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(holdings(), held);
    assert!(log::max_level() == log::LevelFilter::Off, "somebody installed a logger");
    // The devices that were told to panic did so in front of our hook, and nothing else did.
    assert_eq!(PANICS.load(Ordering::SeqCst), 2);
    assert!(std::panic::catch_unwind(|| panic!("for the hook")).is_err());
    assert_eq!(PANICS.load(Ordering::SeqCst), 3, "the panic hook is still ours");
}
