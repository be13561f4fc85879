//! Inside the machine: runs the command, and ends the machine with its exit code.

use std::arch::asm;
use std::error::Error;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode, Stdio};

use rustix::mount::{MountFlags, mount};
use rustix::termios::{OptionalActions, tcdrain, tcgetattr, tcsetattr};

pub(crate) const FOLDER: &str = ".exec";
pub(crate) const PATH: &str = "/.exec/init";
/// The command's words, a zero between them.
pub(crate) const COMMAND: &str = "/.exec/command";

/// One byte written to this port ends the machine, and is its exit code.
const EXIT_PORT: u16 = 0xf4;

/// Never returns in a machine of ours: Linux panics when its init ends.
pub(crate) fn main() -> ExitCode {
    let ended = run();
    let code = ended.unwrap_or_else(|error| {
        eprintln!("init: {error}");
        126
    });
    // What is printed is in the machine's UART before the machine goes.
    let _ = tcdrain(io::stdout());
    match exit(code) {
        Ok(()) => eprintln!("init: no exit port"),
        Err(error) => eprintln!("init: cannot reach the exit port: {error}"),
    }
    ExitCode::FAILURE
}

fn run() -> Result<u8, Box<dyn Error>> {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, target, kind, MountFlags::empty(), None)?;
    }
    // Output as it is, with no carriage returns in it.
    let mut terminal = tcgetattr(io::stdout())?;
    terminal.make_raw();
    tcsetattr(io::stdout(), OptionalActions::Now, &terminal)?;

    let words = std::fs::read(COMMAND)?;
    let mut words = words.split(|byte| *byte == 0).map(OsStr::from_bytes);
    let mut command = Command::new(words.next().ok_or("no command")?);
    command.args(words).stdin(Stdio::null()).env_clear();
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let status = match command.status() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            eprintln!("init: {}: not found", command.get_program().display());
            return Ok(127);
        }
        status => status?,
    };
    // As a shell says it.
    let code = status.code().unwrap_or(128 + status.signal().unwrap_or_default());
    Ok(u8::try_from(code)?)
}

fn exit(code: u8) -> io::Result<()> {
    // SAFETY: ioperm takes no pointer; it only widens what this thread's `out` may reach.
    if unsafe { libc::ioperm(EXIT_PORT.into(), 1, 1) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given the port to this thread, and `out` touches no memory.
    unsafe {
        asm!("out dx, al", in("dx") EXIT_PORT, in("al") code, options(nomem, nostack, preserves_flags));
    }
    Ok(())
}
