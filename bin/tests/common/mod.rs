//! Runs the built binary and looks at what comes out.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic here is a failed test"
)]

pub(crate) mod pty;

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::mpsc::channel,
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// No run of a test may take longer, on any host. It fails then, with all that was printed.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(120);

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_sparkler");

/// `sparkler` with these arguments and without input.
pub(crate) fn sparkler<'a>(args: impl IntoIterator<Item = &'a str>) -> Command {
    let mut command = Command::new(BINARY);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Starts a program that can make no file longer than 64 KiB: to write beyond that is an error for it, as on a full
/// disk, but needs no rights. The program and its arguments follow.
pub(crate) const WITH_SHORT_FILES: [&str; 3] =
    ["-c", "trap '' XFSZ; ulimit -f 128; exec \"$0\" \"$@\"", BINARY];

/// How a run ended and what it printed.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

impl Run {
    /// The last line on standard error, as JSON.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.stderr.lines().last().unwrap()).unwrap()
    }

    /// Asserts that it was refused with one clear line that has `word` in it.
    #[track_caller]
    pub(crate) fn assert_refused(&self, word: &str) {
        assert_eq!(self.code, Some(2), "{self:?}");
        assert_eq!(self.stdout, "", "{self:?}");
        assert!(self.stderr.starts_with("sparkler: "), "{self:?}");
        assert!(self.stderr.ends_with('\n') && self.stderr.lines().count() == 1, "{self:?}");
        assert!(self.stderr.contains(word), "no {word:?} in {self:?}");
    }
}

/// Runs to the end.
pub(crate) fn run(mut command: Command) -> Run {
    finish(command.spawn().unwrap())
}

/// Starts with `input` on standard input, which then ends.
pub(crate) fn spawn_with_input(command: &mut Command, input: Vec<u8>) -> Child {
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // A child that ends before it has read everything is for the caller to judge.
    thread::spawn(move || drop(stdin.write_all(&input)));
    child
}

/// Waits for the end; kills the child if it takes too long.
pub(crate) fn finish(child: Child) -> Run {
    finish_raw(child).into()
}

/// Like [`finish`], for output that is no text.
pub(crate) fn finish_raw(child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (sender, result) = channel();
    thread::spawn(move || sender.send(child.wait_with_output()));
    if let Ok(output) = result.recv_timeout(TIME_LIMIT) {
        return output.unwrap();
    }
    kill_process(pid, Signal::KILL).unwrap();
    panic!("still running after {TIME_LIMIT:?}: {:?}", Run::from(result.recv().unwrap().unwrap()));
}

/// A directory of files to run with.
pub(crate) struct Files(TempDir);

impl Files {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    /// The path of a new file with this content.
    pub(crate) fn file(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).unwrap();
        self.text(name)
    }

    /// The path of the built-in guest, as a file.
    pub(crate) fn guest(&self) -> String {
        self.file("guest.elf", sparkler_guest::ELF)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// The names of the files in it, sorted.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}
