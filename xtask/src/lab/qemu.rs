//! One QEMU machine: its command line, its channels, and how it ended.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::image::Image;
use super::{Run, Timers};

/// From QEMU's start until the command runs: a few seconds; this much on a crowded machine.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// From the command's end until QEMU has ended.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(20);
/// The first of a run's own disks, behind the lab's root and the archive with the files.
pub(super) const FIRST_DISK: &str = "/dev/vdc";
/// How much of the kernel's console is kept for an error message.
const CONSOLE_TAIL: usize = 4096;

/// Where the command's input comes from, and where its output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Io {
    /// Ours, each stream on its own; a terminal is not read from.
    Inherit,
    /// Our terminal, with stdout and stderr as one.
    Terminal,
    /// No input, and our stdout and stderr.
    Show,
    /// No input, and the output is kept.
    Capture,
}

/// How the command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// By itself; 128 + N where signal N ended it.
    Exit(u8),
    /// By us, after the time that it was given.
    TimedOut,
}

/// A run that is over.
pub(crate) struct Finished {
    pub(crate) ended: Ended,
    /// stdout, then stderr, where [`Io::Capture`] asked for them.
    pub(crate) output: String,
}

/// Boots the machine and waits for its end.
///
/// # Errors
/// When the lab ended before its command did: QEMU did not start, the kernel panicked, the command
/// switched the machine off.
pub(super) fn boot(
    image: &Image,
    run: &Run,
    io: Io,
    archive: &Path,
    results: Option<&Path>,
) -> Result<Finished> {
    let mut qemu = machine(image, run, archive)?;
    let mut channels = Channels::default();
    let console = channels.open(&mut qemu, "console")?;
    qemu.args(["-serial", "chardev:console"]);

    // "stdin" comes first and "status" last: the lab begins when it sees the latter.
    let streams = match io {
        Io::Terminal => {
            qemu.args(["-chardev", "stdio,id=terminal,mux=on,signal=off", "-echr", "0x1d"]);
            qemu.args(["-device", "virtconsole,chardev=terminal"]);
            None
        }
        Io::Inherit | Io::Show | Io::Capture => Some((
            channels.port(&mut qemu, "stdin")?,
            channels.port(&mut qemu, "stdout")?,
            channels.port(&mut qemu, "stderr")?,
        )),
    };
    if let Some(results) = results {
        qemu.arg("-chardev").arg(with_path("file,id=results,path=", results));
        qemu.args(["-device", "virtserialport,chardev=results,name=results"]);
    }
    let status = channels.port(&mut qemu, "status")?;

    if io != Io::Terminal {
        qemu.stdin(Stdio::null()).stdout(Stdio::null());
    }
    let mut child = qemu.stderr(Stdio::piped()).spawn().context("cannot run qemu-system-x86_64")?;
    drop(channels);

    let heard = Heard::now();
    let console = keep_tail(console, run.verbose);
    let errors = child.stderr.take().map(|errors| keep_tail(errors, run.verbose));
    let outputs = streams.map(|(stdin, stdout, stderr)| {
        feed(stdin, io);
        let heard = || heard.clone();
        (collect(stdout, io, io::stdout(), heard()), collect(stderr, io, io::stderr(), heard()))
    });

    let limits = Limits { timeout: run.timeout, patience: run.patience };
    let end = watch(read_statuses(status), &limits, &heard, &mut child);
    child.wait()?;
    let output = outputs.map(|(stdout, stderr)| join(stdout) + &join(stderr)).unwrap_or_default();
    match end {
        End::Command(code) => Ok(Finished { ended: Ended::Exit(code), output }),
        End::TimedOut => Ok(Finished { ended: Ended::TimedOut, output }),
        End::Failed(reason) => {
            let details = errors.map(join).unwrap_or_default() + &join(console);
            let details = if run.verbose { "" } else { details.trim() };
            bail!("{reason}{}{details}", if details.is_empty() { "" } else { ":\n" })
        }
    }
}

fn machine(image: &Image, run: &Run, archive: &Path) -> Result<Command> {
    // The machine ends with us, however we end.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "qemu-system-x86_64"]);
    qemu.args(["-M", "q35", "-accel", "tcg,thread=multi", "-cpu", "EPYC,+svm,+npt,check=off"]);
    qemu.args(["-smp", &run.smp.to_string(), "-m", &run.memory.to_string()]);
    qemu.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(&image.kernel).arg("-initrd").arg(&image.initramfs);
    // On a crowded machine the emulated timer may come too late for the kernel's check of it.
    let cmdline = "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check";
    let timers = match run.timers {
        Timers::Exact => "",
        Timers::Periodic => " nohz=off highres=off",
    };
    qemu.args(["-append", &format!("{cmdline}{timers}")]);
    // What is written to the disks goes to a temporary file and is forgotten.
    let own = [(image.disk.as_path(), "if=virtio"), (archive, "if=virtio,readonly=on")];
    let more = run.disks.iter().map(|disk| (disk.as_path(), "if=virtio"));
    for (disk, format) in own.into_iter().chain(more) {
        let options = format!("format=raw,{format},snapshot=on,cache=unsafe,file=");
        qemu.arg("-drive").arg(with_path(&options, disk));
    }
    qemu.args(["-device", "virtio-serial-pci,max_ports=8"]);
    Ok(qemu)
}

/// QEMU ends an option at a comma unless it is doubled.
fn with_path(option: &str, path: &Path) -> OsString {
    format!("{option}{}", path.display().to_string().replace(',', ",,")).into()
}

/// QEMU's ends of the channels, which it inherits; dropped once it runs, so that its end is theirs.
#[derive(Default)]
struct Channels(Vec<UnixStream>);

impl Channels {
    fn open(&mut self, qemu: &mut Command, name: &str) -> Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        qemu.args(["-chardev", &format!("socket,id={name},fd={}", theirs.as_raw_fd())]);
        self.0.push(theirs);
        Ok(ours)
    }

    fn port(&mut self, qemu: &mut Command, name: &str) -> Result<UnixStream> {
        let ours = self.open(qemu, name)?;
        qemu.args(["-device", &format!("virtserialport,chardev={name},name={name}")]);
        Ok(ours)
    }
}

/// What the lab says of itself on its status channel.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    /// The command begins.
    Up,
    Exit(u8),
    Fail(String),
}

impl Status {
    fn parse(line: &str) -> Option<Self> {
        match line.trim_end().split_once(' ') {
            None => (line.trim_end() == "up").then_some(Self::Up),
            Some(("exit", code)) => code.parse().ok().map(Self::Exit),
            Some(("fail", reason)) => Some(Self::Fail(reason.to_owned())),
            Some(_) => None,
        }
    }
}

/// The channel closes when QEMU is gone.
fn read_statuses(status: UnixStream) -> Receiver<Status> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(status).lines().map_while(Result::ok) {
            if let Some(status) = Status::parse(&line) {
                let _ = sender.send(status);
            }
        }
    });
    receiver
}

enum End {
    Command(u8),
    TimedOut,
    Failed(String),
}

/// For how long a command may run.
struct Limits {
    /// In all.
    timeout: Option<Duration>,
    /// Without a word.
    patience: Option<Duration>,
}

/// When the command last said something.
#[derive(Clone)]
struct Heard(Arc<Mutex<Instant>>);

impl Heard {
    fn now() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn again(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }
}

/// Follows the lab from boot to QEMU's end, and sees to it that there is one.
fn watch(statuses: Receiver<Status>, limits: &Limits, heard: &Heard, child: &mut Child) -> End {
    let begun = Instant::now();
    let timeout = || {
        let timeout = limits.timeout.map(|timeout| begun + timeout);
        let silence = limits.patience.map(|patience| heard.at() + patience);
        timeout.into_iter().chain(silence).min()
    };
    let mut stage_limit = Some(begun + BOOT_LIMIT);
    let mut up = false;
    let mut end = None;
    loop {
        let limit = timeout().filter(|_| end.is_none()).into_iter().chain(stage_limit).min();
        let status = match limit {
            Some(limit) => statuses.recv_timeout(limit.saturating_duration_since(Instant::now())),
            None => statuses.recv().map_err(RecvTimeoutError::from),
        };
        match status {
            Ok(Status::Up) => {
                (up, stage_limit) = (true, None);
                heard.again();
            }
            Ok(Status::Exit(code)) => {
                (end, stage_limit) =
                    (Some(End::Command(code)), Some(Instant::now() + POWER_OFF_LIMIT));
            }
            Ok(Status::Fail(reason)) => {
                (end, stage_limit) =
                    (Some(End::Failed(reason)), Some(Instant::now() + POWER_OFF_LIMIT));
            }
            Err(RecvTimeoutError::Disconnected) => {
                let when = if up {
                    "the lab ended before its command did"
                } else {
                    "the lab did not boot"
                };
                return end.unwrap_or(End::Failed(when.into()));
            }
            // Something was said meanwhile.
            Err(RecvTimeoutError::Timeout)
                if end.is_none()
                    && stage_limit.is_none()
                    && timeout().is_some_and(|limit| limit > Instant::now()) => {}
            Err(RecvTimeoutError::Timeout) => {
                stop(child, &statuses);
                let boot = format!("the lab did not boot within {} s", BOOT_LIMIT.as_secs());
                let timed_out = timeout().is_some_and(|timeout| timeout <= Instant::now());
                let why = if timed_out { End::TimedOut } else { End::Failed(boot) };
                return end.unwrap_or(why);
            }
        }
    }
}

/// Ends QEMU: by asking, so that it restores the terminal, then by force.
fn stop(child: &mut Child, statuses: &Receiver<Status>) {
    let process = rustix::process::Pid::from_child(child);
    let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    let limit = Instant::now() + Duration::from_secs(3);
    while let Ok(_late) = statuses.recv_timeout(limit.saturating_duration_since(Instant::now())) {}
    let _ = child.kill();
}

/// Sends our stdin to the command. A terminal is left alone: whoever wants it asks for it.
fn feed(stdin: UnixStream, io: Io) {
    thread::spawn(move || {
        let mut port = &stdin;
        if io == Io::Inherit && !io::stdin().is_terminal() {
            // The command may end without reading all of it.
            let _ = io::copy(&mut io::stdin().lock(), &mut port);
        }
        let _ = stdin.shutdown(Shutdown::Write);
        // A closed socket would take what is still under way with it.
        let _ = port.read(&mut [0]);
    });
}

/// Keeps or shows all to the end; what a closed sink does not take is dropped, so that the lab never
/// blocks on it.
fn collect(
    mut port: UnixStream,
    io: Io,
    mut sink: impl Write + Send + 'static,
    heard: Heard,
) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut kept = Vec::new();
        let mut buffer = [0; 64 << 10];
        while let Ok(length @ 1..) = port.read(&mut buffer) {
            heard.again();
            let bytes = buffer.get(..length).unwrap_or_default();
            if io == Io::Capture {
                kept.extend_from_slice(bytes);
            } else {
                let _ = sink.write_all(bytes).and_then(|()| sink.flush());
            }
        }
        String::from_utf8_lossy(&kept).into_owned()
    })
}

/// Keeps the last of what QEMU or the lab's kernel says, and shows it at once if asked to.
fn keep_tail(mut source: impl Read + Send + 'static, show: bool) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut tail = Vec::new();
        let mut buffer = [0; 4096];
        while let Ok(length @ 1..) = source.read(&mut buffer) {
            let bytes = buffer.get(..length).unwrap_or_default();
            if show {
                let _ = io::stderr().write_all(bytes);
            }
            tail.extend_from_slice(bytes);
            let excess = tail.len().saturating_sub(CONSOLE_TAIL);
            tail.drain(..excess);
        }
        String::from_utf8_lossy(&tail).into_owned()
    })
}

fn join(thread: JoinHandle<String>) -> String {
    thread.join().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_statuses_count() {
        assert_eq!(Status::parse("up"), Some(Status::Up));
        assert_eq!(Status::parse("exit 137\r"), Some(Status::Exit(137)));
        assert_eq!(Status::parse("fail no /dev/kvm"), Some(Status::Fail("no /dev/kvm".into())));
        assert_eq!(Status::parse("exit 256"), None);
        assert_eq!(Status::parse("exit"), None);
    }

    /// Follows a child that only sleeps, and that says it is up.
    fn watched(limits: &Limits, heard: &Heard) -> End {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let (sender, statuses) = mpsc::channel();
        sender.send(Status::Up).unwrap();
        drop(thread::spawn(move || {
            thread::sleep(Duration::from_secs(5)); // Longer than any of this takes.
            drop(sender);
        }));
        let end = watch(statuses, limits, heard, &mut child);
        child.wait().unwrap();
        end
    }

    #[test]
    fn a_command_that_says_nothing_is_ended() {
        let limits = Limits { timeout: None, patience: Some(Duration::from_millis(300)) };
        let heard = Heard::now();
        let begun = Instant::now();
        let talker = heard.clone();
        let talking = thread::spawn(move || {
            for _ in 0..10 {
                thread::sleep(Duration::from_millis(50)); // The command's pace.
                talker.again();
            }
        });
        assert!(matches!(watched(&limits, &heard), End::TimedOut));
        talking.join().unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(500), "what it said did not count");
    }
}
