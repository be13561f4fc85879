//! A terminal of the test's own, with `sparkler` in its foreground.

use std::{
    fs::{File, OpenOptions},
    io::{Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::{Child, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::OFlags,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
    termios::{InputModes, LocalModes, OutputModes, tcgetattr},
};

use super::{BINARY, TIME_LIMIT};

pub(crate) struct Pty {
    /// What the person at the terminal types.
    keys: File,
    terminal: File,
    screen: Receiver<Vec<u8>>,
    seen: String,
}

/// The modes that tell a raw terminal from another.
pub(crate) type Modes = (InputModes, OutputModes, LocalModes);

impl Pty {
    pub(crate) fn new() -> Self {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
        let noctty = OFlags::NOCTTY.bits().cast_signed();
        let terminal = OpenOptions::new().read(true).write(true).custom_flags(noctty).open(name);
        let keys = File::from(master);
        let mut output = keys.try_clone().unwrap();
        let (sender, screen) = channel();
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = output.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Self { keys, terminal: terminal.unwrap(), screen, seen: String::new() }
    }

    /// Starts `sparkler` in a session of its own, whose terminal this is.
    pub(crate) fn spawn<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Child {
        self.spawn_program(BINARY, args)
    }

    pub(crate) fn spawn_program<'a>(
        &self,
        program: &str,
        args: impl IntoIterator<Item = &'a str>,
    ) -> Child {
        // The child leads no process group, so setsid(1) does not fork: the child's id is that of
        // the program.
        let mut command = Command::new("setsid");
        command.arg("-c").arg(program).args(args);
        let terminal = || self.terminal.try_clone().unwrap();
        command.stdin(terminal()).stdout(terminal()).stderr(terminal()).spawn().unwrap()
    }

    #[track_caller]
    pub(crate) fn type_keys(&self, keys: &[u8]) {
        let (mut terminal, keys) = (self.keys.try_clone().unwrap(), keys.to_vec());
        let (sender, typed) = channel();
        thread::spawn(move || sender.send(terminal.write_all(&keys)));
        typed.recv_timeout(TIME_LIMIT).expect("nobody reads the terminal").unwrap();
    }

    /// Waits until `text` was printed since the last call; returns all that was.
    #[track_caller]
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        while !self.seen.contains(text) {
            match self.screen.recv_timeout(TIME_LIMIT) {
                Ok(bytes) => self.seen.push_str(&String::from_utf8_lossy(&bytes)),
                Err(error) => panic!("no {text:?} on the terminal ({error}): {:?}", self.seen),
            }
        }
        std::mem::take(&mut self.seen)
    }

    pub(crate) fn modes(&self) -> Modes {
        let termios = tcgetattr(&self.terminal).unwrap();
        (termios.input_modes, termios.output_modes, termios.local_modes)
    }

    pub(crate) fn is_raw(&self) -> bool {
        !self.modes().2.intersects(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the terminal is raw.
    #[track_caller]
    pub(crate) fn wait_until_raw(&self) {
        let start = Instant::now();
        while !self.is_raw() {
            assert!(start.elapsed() < TIME_LIMIT, "the terminal did not become raw");
            // A change of modes is no event that could be waited for.
            thread::sleep(Duration::from_millis(1));
        }
    }
}
