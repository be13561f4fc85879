//! The thread between the terminal and the guest: it finds the keys that are for `sparkler`.
//!
//! It reads whether or not the guest does, so Ctrl-A x works on a guest that hangs with its receive
//! buffer full. What the guest leaves unread beyond one pipe's capacity (64 KiB) is lost, as on any
//! terminal, only later.

use std::{
    fs::File,
    io::{self, Write},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::{Errno, read},
    pipe::{PipeFlags, pipe_with},
    stdio::stdin,
};

use crate::{
    ending::Ending,
    escape::{Escape, HELP, Key},
    terminal::Terminal,
    threads,
};

/// How soon a job that was brought to the foreground takes its keys.
const BACKGROUND_LOOK: Duration = Duration::from_millis(100);

/// The terminal's keys, and where the guest's share of them goes.
pub(crate) struct Keyboard {
    terminal: Arc<Terminal>,
    guest: File,
    escape: Escape,
}

impl Keyboard {
    /// A keyboard, not read yet, and the pollable end of what it will type.
    pub(crate) fn new(terminal: Arc<Terminal>) -> io::Result<(Self, File)> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let keyboard = Self { terminal, guest: writer.into(), escape: Escape::default() };
        Ok((keyboard, reader.into()))
    }

    /// Begins to read, in a thread that lasts as long as the process, or as the terminal.
    pub(crate) fn start(mut self, ending: Arc<Ending>) -> io::Result<()> {
        let run = move || while self.turn(&ending).is_ok() {};
        threads::spawn("keyboard", run).map(drop)
    }

    /// Waits for keys and passes them on. An error is the end of the terminal.
    fn turn(&mut self, ending: &Ending) -> Result<(), Errno> {
        let mut keys = [0; 1024];
        match poll(&mut [PollFd::new(&stdin(), PollFlags::IN)], None) {
            Err(Errno::INTR) => return Ok(()),
            result => result?,
        };
        if !Terminal::in_foreground() {
            // These keys are for the shell, and its `fg` makes no event that could be waited for.
            thread::sleep(BACKGROUND_LOOK);
            return Ok(());
        }
        self.terminal.enter();
        match read(stdin(), &mut keys) {
            Err(Errno::INTR | Errno::AGAIN) => Ok(()),
            Err(error) => Err(error),
            Ok(0) => Err(Errno::PIPE),
            Ok(count) => {
                self.pass_on(keys.get(..count).unwrap_or_default(), ending);
                Ok(())
            }
        }
    }

    fn pass_on(&mut self, keys: &[u8], ending: &Ending) {
        let mut typed = Vec::with_capacity(keys.len());
        for &key in keys {
            match self.escape.feed(key) {
                Key::Guest(byte) => typed.push(byte),
                Key::Nothing => {}
                Key::Help => drop(io::stderr().write_all(HELP.as_bytes())),
                Key::End => drop(ending.ask()),
            }
        }
        // A full pipe loses the keys; a closed one has no guest behind it.
        let _ = self.guest.write(&typed);
    }
}
