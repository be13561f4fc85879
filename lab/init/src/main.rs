//! The init of a guest Linux: says what it sees of its machine, and ends it as the command line asks.
//!
//! It is the only program of the guest's initrd. Its words on the kernel's command line are
//!
//! | word | effect |
//! |---|---|
//! | `exit=N` | write N to the exit port (this is the default, with the job's exit code or 0) |
//! | `end=exit\|reboot\|poweroff\|panic\|hang` | end through the exit port, or as Linux would end |
//! | `end=button` | switch off when the power button is pressed |
//! | `root=DEVICE` | go over to the ext4 root file system there, and do the job if there is one |
//! | `ro` | mount it for reading only |
//! | `job=DEVICE` | where the job is, if not on a disk that says so |
//! | `init=PATH` | hand over to the root's own init, instead of doing the job and ending |
//! | `records=DEVICE` | write numbered records there until the machine ends: see [`records`] |
//! | `reset-at-once` | make its first mark, and reset the machine: nothing else |
//! | `hang-at-once` | make its first mark, and stay: nothing else |
//!
//! The job is a shell script: the content of the disk whose serial number is `job`, at `/run/job` in the
//! root. The init's own first act is boot mark 100, so that a timeline shows when user space began; its
//! second, to load the modules in the initrd's `/modules`.

mod button;
mod disks;
mod modules;
mod ports;
mod records;
mod root;
mod words;

use anyhow::{Context, Result};
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use std::fs;
use std::io::Write;

use ports::Ports;
use words::{End, Words};

/// The boot mark that says "user space has begun".
const MARK_USER_SPACE: u8 = 100;

fn main() -> Result<()> {
    let ports = Ports::open().context("cannot reach the exit port and the boot-mark port")?;
    ports.boot_mark(MARK_USER_SPACE);
    // The kernel gives its init the words that it does not know itself.
    if std::env::args().any(|word| word == "reset-at-once") {
        reboot(RebootCommand::Restart)?;
    }
    if std::env::args().any(|word| word == "hang-at-once") {
        return end(End::Hang, 0, &ports);
    }
    mount_file_systems()?;
    modules::load()?;
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    let words = Words::parse(&cmdline)?;
    report()?;
    if let Some(device) = words.records {
        records::write_forever(device)?;
    }
    let mut code = 0;
    if let Some(device) = words.root {
        root::enter(device, words.read_only, words.job)?;
        if let Some(init) = words.init {
            root::hand_over(init)?;
        }
        code = root::run_job()?;
        root::leave()?;
    }
    flush_console();
    end(words.end, code, &ports)
}

fn mount_file_systems() -> Result<()> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(target)?;
        mount(kind, target, kind, MountFlags::empty(), None)
            .with_context(|| format!("cannot mount {kind} on {target}"))?;
    }
    Ok(())
}

/// What the guest sees of its machine, one `name: value` a line.
fn report() -> Result<()> {
    let mut out = std::io::stdout().lock();
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap_or("?");
    writeln!(out, "init: hello from user space")?;
    writeln!(out, "nproc: {}", std::thread::available_parallelism()?)?;
    writeln!(out, "memory: {}", total.trim())?;
    writeln!(out, "kernel: {}", fs::read_to_string("/proc/version")?.trim())?;
    Ok(())
}

/// Waits until the last byte has left the UART: the exit port ends the machine at once.
fn flush_console() {
    // A guest without a console has nothing to wait for.
    let _ = rustix::termios::tcdrain(std::io::stdout());
}

fn end(end: End, code: u8, ports: &Ports) -> Result<()> {
    match end {
        End::Exit(asked) => ports.exit(asked.unwrap_or(code)),
        End::Reboot => reboot(RebootCommand::Restart)?,
        End::PowerOff => reboot(RebootCommand::PowerOff)?,
        End::Button => {
            button::wait()?;
            reboot(RebootCommand::PowerOff)?;
        }
        // Linux panics when its init ends, which is what is asked for.
        End::Panic => return Ok(()),
        End::Hang => {}
    }
    // A machine that ends needs a moment to do so; init must not end before it.
    loop {
        std::thread::park();
    }
}
