//! Sub-commands that take their time: run with a sign of life, quiet when all went well.

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};
use std::cell::Cell;
use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

/// A step shorter than this is not worth a line.
const WORTH_A_LINE: Duration = Duration::from_secs(2);

/// What a sub-command printed, and how it ended.
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    /// Both streams, line by line as they came.
    pub(crate) transcript: String,
}

/// Runs a command that must succeed; its output is shown only if it does not.
pub(crate) fn run(title: &str, command: &mut Command) -> Result<Output> {
    let output = run_any(title, command)?;
    if !output.status.success() {
        eprint!("{}", output.transcript);
        bail!("`{}` failed ({})", describe(command), output.status);
    }
    Ok(output)
}

/// Runs a command whose failure is the caller's to judge.
pub(crate) fn run_any(title: &str, command: &mut Command) -> Result<Output> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{}`", describe(command)))?;
    let (sender, lines) = mpsc::channel();
    read_lines(child.stdout.take(), Stream::Stdout, sender.clone());
    read_lines(child.stderr.take(), Stream::Stderr, sender);

    let progress = Progress::new(title);
    let (mut stdout, mut transcript) = (String::new(), String::new());
    loop {
        match lines.recv_timeout(Duration::from_millis(200)) {
            Ok((stream, line)) => {
                // What is meant for a program, such as cargo's JSON, comes on stdout.
                if stream == Stream::Stderr {
                    progress.line(&line);
                }
                transcript.push_str(&line);
                if stream == Stream::Stdout {
                    stdout.push_str(&line);
                }
            }
            Err(RecvTimeoutError::Timeout) => progress.tick(),
            Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    let status = child.wait()?;
    progress.done(status.success());
    Ok(Output { status, stdout, transcript })
}

/// Does something that prints nothing by itself, with a sign of life.
pub(crate) fn during<T>(title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let progress = Progress::new(title);
    progress.announce();
    let result = work();
    progress.done(result.is_ok());
    result
}

/// The command as one would type it.
pub(crate) fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stream {
    Stdout,
    Stderr,
}

fn read_lines(
    source: Option<impl Read + Send + 'static>,
    stream: Stream,
    sender: Sender<(Stream, String)>,
) {
    let Some(source) = source else { return };
    thread::spawn(move || {
        let mut source = BufReader::new(source);
        let mut line = Vec::new();
        while source.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).into_owned();
            if sender.send((stream, text)).is_err() {
                return;
            }
            line.clear();
        }
    });
}

/// A spinner on a terminal; elsewhere a line when a step turns out long, and one when it ends.
struct Progress {
    title: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    announced: Cell<bool>,
}

impl Progress {
    fn new(title: &str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner().with_message(title.to_owned());
            if let Ok(style) =
                ProgressStyle::with_template("{spinner} {msg} [{elapsed}] {prefix:.dim}")
            {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        let announced = Cell::new(false);
        Self { title: title.to_owned(), begun: Instant::now(), bar, announced }
    }

    fn line(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_prefix(line.trim().chars().take(60).collect::<String>());
        }
        self.tick();
    }

    fn tick(&self) {
        if !self.announced.get() && self.begun.elapsed() > WORTH_A_LINE {
            self.announce();
        }
    }

    fn announce(&self) {
        if self.bar.is_none() {
            eprintln!("{} …", self.title);
        }
        self.announced.set(true);
    }

    fn done(&self, well: bool) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let elapsed = self.begun.elapsed();
        if elapsed > WORTH_A_LINE {
            let how = if well { "done" } else { "FAILED" };
            eprintln!("{}: {how} in {:.1} s", self.title, elapsed.as_secs_f64());
        }
    }
}
