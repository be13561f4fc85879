//! Standard input and output as the guest's serial port.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd},
        unix::fs::FileTypeExt,
    },
    sync::Arc,
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags, open},
    stdio::{stdin, stdout},
};
use sparkler::Console;

use crate::{keyboard::Keyboard, terminal::Terminal};

/// How long the last output of an ended guest waits for a reader that takes none of it, such as a
/// pager at its first page. Then it is dropped and counted.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The standard streams as a console; and the keyboard, to be started with the machine, if standard
/// input is a terminal.
///
/// A reader of standard output that goes away ends nothing: `sparkler run … | head` runs its guest
/// to the end, and the library counts what nobody took.
pub(crate) fn on_standard_streams(
    terminal: Option<&Arc<Terminal>>,
) -> io::Result<(Console, Option<Keyboard>)> {
    let output = without_blocking(stdout(), OFlags::WRONLY)?;
    let (console, keyboard) = if let Some(terminal) = terminal {
        let (keyboard, typed) = Keyboard::new(Arc::clone(terminal))?;
        (Console::pollable(typed, output), Some(keyboard))
    } else {
        (Console::pollable(without_blocking(stdin(), OFlags::RDONLY)?, output), None)
    };
    Ok((console.drain_timeout(DRAIN_TIMEOUT), keyboard))
}

/// The same pipe or terminal, not blocking. `O_NONBLOCK` belongs to the open file, which other
/// processes share, so it is opened a second time. What is of another kind does not block (a disk),
/// or cannot be opened again (a socket), and is taken as it is.
fn without_blocking(fd: BorrowedFd<'_>, access: OFlags) -> io::Result<File> {
    let same = File::from(fd.try_clone_to_owned()?);
    let kind = same.metadata()?.file_type();
    if !(kind.is_fifo() || kind.is_char_device()) {
        return Ok(same);
    }
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty()).map_or(same, File::from))
}
