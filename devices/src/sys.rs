//! What needs `unsafe`: two system calls that the standard library does not wrap, and a borrow.
#![allow(unsafe_code)] // Disks have two more such files.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::time::Duration;

use vmm_sys_util::eventfd::EventFd;

/// The file descriptor of `event`, for as long as `event` keeps it open.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: an EventFd owns its descriptor and is not -1; the result lives no longer than `event`.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

/// Waits for file descriptors; keeps its table from one call to the next.
#[derive(Debug, Default)]
pub(crate) struct Poller(Vec<libc::pollfd>);

impl Poller {
    /// Blocks until one of `fds` is ready (or in error, or hung up), `timeout` has passed, or a signal
    /// came.
    pub(crate) fn wait<'fd>(
        &mut self,
        fds: impl IntoIterator<Item = Interest<'fd>>,
        timeout: Option<Duration>,
    ) -> io::Result<()> {
        self.0.clear();
        self.0.extend(fds.into_iter().map(|Interest { fd, read, write }| libc::pollfd {
            fd: fd.as_raw_fd(),
            events: if read { libc::POLLIN } else { 0 } | if write { libc::POLLOUT } else { 0 },
            revents: 0,
        }));
        let count = libc::nfds_t::try_from(self.0.len()).map_err(io::Error::other)?;
        let timeout = timeout.map(|timeout| libc::timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        let timeout = timeout.as_ref().map_or(ptr::null(), ptr::from_ref);
        // SAFETY: the table holds `count` entries; timeout and signal mask are null or valid for reads.
        let result = unsafe { libc::ppoll(self.0.as_mut_ptr(), count, timeout, ptr::null()) };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        self.clear(); // Nothing was looked at.
        if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) }
    }

    /// Whether the descriptor that was number `index` of the last [`wait`](Self::wait) was ready.
    pub(crate) fn is_ready(&self, index: usize) -> bool {
        self.0.get(index).is_some_and(|entry| entry.revents != 0)
    }

    /// Forgets the last [`wait`](Self::wait).
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

/// A file descriptor to wait for. Errors and a hang-up end the wait too, whatever is asked for.
#[derive(Debug, Clone, Copy)]
pub struct Interest<'fd> {
    /// Which one.
    pub fd: BorrowedFd<'fd>,
    /// Until it is readable.
    pub read: bool,
    /// Until it is writable.
    pub write: bool,
}

impl<'fd> Interest<'fd> {
    /// Until `fd` is readable.
    #[must_use]
    pub fn read(fd: BorrowedFd<'fd>) -> Self {
        Self { fd, read: true, write: false }
    }
}

/// Blocks every signal in the calling thread but those that a fault of its own raises, so that the
/// process's handlers run on the process's own threads.
pub(crate) fn block_signals() {
    let faults =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the whole set, sigdelset changes one bit of a valid one, and a
    // null old set is allowed. None can fail: the signal numbers and SIG_SETMASK are valid.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for signal in faults {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), ptr::null_mut());
    }
}

/// Has the process that `command` starts inherit `fd`, under the same number. Here it stays closed on exec.
pub(crate) fn hand_on(command: &mut Command, fd: OwnedFd) {
    // SAFETY: between fork and exec only fcntl is called, which is async-signal-safe and takes no
    // pointers here; the closure owns the descriptor, so it is open.
    unsafe {
        command.pre_exec(move || match libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_what_is_readable_or_until_the_time_is_over() {
        let (quiet, loud) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
        loud.write(1).unwrap();
        let (quiet, loud) = (borrow(&quiet), borrow(&loud));
        let mut poller = Poller::default();
        poller.wait([quiet, loud].map(Interest::read), None).unwrap();
        assert_eq!([0, 1, 2].map(|index| poller.is_ready(index)), [false, true, false]);
        poller.wait([Interest::read(loud)], Some(Duration::MAX)).unwrap();
        poller.wait([Interest::read(quiet)], Some(Duration::from_millis(1))).unwrap();
        assert!(!poller.is_ready(0));
        poller.wait([Interest { fd: quiet, read: false, write: true }], None).unwrap();
        assert!(poller.is_ready(0));
        poller.wait([], Some(Duration::ZERO)).unwrap();
    }

    #[test]
    fn signals_stay_pending_in_a_thread_that_blocks_them() {
        // The default action of the signal would end the process.
        std::thread::spawn(|| {
            block_signals();
            // SAFETY: neither has a precondition: a signal to the calling thread, then a look at what
            // is pending for it, in a set that the kernel fills.
            let pending = unsafe {
                libc::raise(libc::SIGUSR1);
                let mut set = MaybeUninit::uninit();
                libc::sigpending(set.as_mut_ptr());
                libc::sigismember(set.as_ptr(), libc::SIGUSR1)
            };
            assert_eq!(pending, 1);
        })
        .join()
        .unwrap();
    }
}
