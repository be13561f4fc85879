//! What a process and its guest took from the host.

use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::pty::{self, OpenptFlags};
use rustix::time::{ClockId, clock_gettime};

use crate::Result;

/// One whole process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Usage {
    /// When it was started, on the monotonic clock.
    pub(crate) start: Duration,
    /// From just before it was started until its end was seen.
    pub(crate) wall: Duration,
    /// User and system time, that of its guest included.
    pub(crate) cpu: Duration,
    /// The most that it had resident, guest memory included, in KiB.
    pub(crate) peak_kib: u64,
}

/// A process that was started, and when.
pub(crate) struct Started {
    child: Child,
    start: Duration,
    begin: Instant,
    /// What it says of errors.
    errors: File,
    /// The other end of its terminal, which goes when this is closed.
    _terminal: Option<OwnedFd>,
}

/// Starts a process whose output goes nowhere. There is nothing to read for it, from a terminal if it
/// insists on one.
pub(crate) fn start(command: &mut Command, terminal: bool) -> Result<Started> {
    // The kernel counts our own peak as the child's, which shares our memory until it executes: so let
    // ours be what we have now. See proc(5), clear_refs.
    fs::write("/proc/self/clear_refs", "5")?;
    let errors = tempfile::tempfile()?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors.try_clone()?);
    let mut kept = None;
    if terminal {
        let (ours, theirs) = open_terminal()?;
        command.stdin(theirs);
        kept = Some(ours);
    }
    let (start, begin) = (monotonic(), Instant::now());
    let child = command.spawn();
    let child = child.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
    Ok(Started { child, start, begin, errors, _terminal: kept })
}

fn open_terminal() -> Result<(OwnedFd, File)> {
    let ours = pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    pty::grantpt(&ours)?;
    pty::unlockpt(&ours)?;
    let name = pty::ptsname(&ours, Vec::new())?;
    // It is not to become our own controlling terminal, whose end would be ours.
    let theirs =
        File::options().read(true).write(true).custom_flags(libc::O_NOCTTY).open(name.to_str()?)?;
    Ok((ours, theirs))
}

impl Started {
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn since_start(&self) -> Duration {
        self.start
    }

    /// Waits until it ends, which must go well; ends it if that takes longer than `patience`.
    pub(crate) fn wait(mut self, patience: Duration) -> Result<Usage> {
        let process = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit = Timespec::try_from(patience)?;
        let mut wanted = [PollFd::new(&process, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut wanted, Some(&limit)))? == 0 {
            self.child.kill()?;
            self.child.wait()?;
            return Err(format!("it was still running after {} s", patience.as_secs()).into());
        }
        let (status, usage) = wait4(self.child.id())?;
        let wall = self.begin.elapsed();
        if !status.success() {
            return Err(format!("{status}: {}", self.last_words()).into());
        }
        let cpu = time(usage.ru_utime) + time(usage.ru_stime);
        let peak_kib = u64::try_from(usage.ru_maxrss)?;
        Ok(Usage { start: self.start, wall, cpu, peak_kib })
    }

    /// The last line that it said of errors.
    fn last_words(mut self) -> String {
        let mut text = Vec::new();
        let read = self.errors.rewind().and_then(|()| self.errors.read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no message");
        if read.is_ok() { last.trim().to_owned() } else { String::new() }
    }

    /// Whether it has ended by itself.
    pub(crate) fn ended(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    pub(crate) fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

/// The clock that trace events are stamped with.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

fn wait4(process: u32) -> Result<(ExitStatus, libc::rusage)> {
    let process = libc::pid_t::try_from(process)?;
    let mut status = 0;
    // SAFETY: all zeroes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    loop {
        // SAFETY: both pointers are to local variables of the right types.
        if unsafe { libc::wait4(process, &raw mut status, 0, &raw mut usage) } == process {
            return Ok((ExitStatus::from_raw(status), usage));
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error.into());
        }
    }
}

fn time(time: libc::timeval) -> Duration {
    let whole = Duration::from_secs(time.tv_sec.try_into().unwrap_or(0));
    whole + Duration::from_micros(time.tv_usec.try_into().unwrap_or(0))
}

/// What a process has in memory, in KiB.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resident {
    /// Its own alone, without guest memory.
    pub(crate) private: u64,
    /// Its share of everything, guest memory included.
    pub(crate) proportional: u64,
}

/// Looks at a process whose guest has `guest_kib` of memory.
pub(crate) fn resident(process: u32, guest_kib: u64) -> Result<Resident> {
    let account = fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let mappings = parse_mappings(&account);
    let guest = guest_mappings(&mappings, guest_kib).ok_or("no mapping is the guest's memory")?;
    let part = mappings.get(guest.clone()).unwrap_or_default();
    let within: u64 = part.iter().map(|mapping| mapping.private).sum();
    let size: u64 = part.iter().map(|mapping| (mapping.end - mapping.start) >> 10).sum();
    // Where a neighbour is joined to it, all that may be the neighbour's is taken for the monitor's own.
    let joined = size.saturating_sub(guest_kib).min(within);
    let all: u64 = mappings.iter().map(|mapping| mapping.private).sum();
    Ok(Resident {
        private: all - within + joined,
        proportional: mappings.iter().map(|mapping| mapping.proportional).sum(),
    })
}

#[derive(Clone, Copy, Debug, Default)]
struct Mapping {
    start: u64,
    end: u64,
    private: u64,
    proportional: u64,
}

fn parse_mappings(account: &str) -> Vec<Mapping> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in account.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), second) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-') {
            let number = |text| u64::from_str_radix(text, 16).unwrap_or(0);
            let (start, end) = (number(start), number(end));
            mappings.push(Mapping { start, end, ..Mapping::default() });
        }
        let Some(mapping) = mappings.last_mut() else { continue };
        let value = second.and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        match first {
            "Private_Clean:" | "Private_Dirty:" => mapping.private += value,
            "Pss:" => mapping.proportional += value,
            _ => {}
        }
    }
    mappings
}

/// Guest memory is the run of adjacent mappings that is as large as it: one, or several where files
/// were mapped into it. Where there is none, the host's kernel has joined it with a neighbour, and it is the
/// smallest mapping that it fits in.
fn guest_mappings(mappings: &[Mapping], guest_kib: u64) -> Option<std::ops::Range<usize>> {
    let size = guest_kib << 10;
    let run = (0..mappings.len()).find_map(|first| {
        let start = mappings.get(first)?.start;
        let mut end = start;
        for (index, mapping) in mappings.iter().enumerate().skip(first) {
            if mapping.start != end {
                return None;
            }
            end = mapping.end;
            if end - start == size {
                return Some(first..index + 1);
            }
        }
        None
    });
    run.or_else(|| {
        let large = mappings.iter().enumerate().map(|(index, it)| (it.end - it.start, index));
        let (_, index) = large.filter(|(length, _)| (size..2 * size).contains(length)).min()?;
        Some(index..index + 1)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ACCOUNT: &str = "\
1000-3000 r-xp 00000000 00:00 0 /bin/x
Pss:                   8 kB
Private_Clean:         4 kB
10000-20000 rw-p 00000000 00:00 0
Pss:                  64 kB
Private_Dirty:        64 kB
20000-110000 rw-p 00000000 00:00 0 /kernel
Private_Dirty:        11 kB
";

    #[test]
    fn guest_memory_may_be_several_mappings() {
        let mappings = parse_mappings(ACCOUNT);
        assert_eq!(mappings.len(), 3);
        assert_eq!(guest_mappings(&mappings, 1024), Some(1..3));
        assert_eq!(guest_mappings(&mappings, 64), Some(1..2));
        assert_eq!(guest_mappings(&mappings, 40), Some(1..2), "joined with a neighbour");
        assert_eq!(guest_mappings(&mappings, 4096), None);
    }
}
