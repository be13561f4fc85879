use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Waits until the file descriptor can be read or written, as asked for in `interests`, and says for
/// each whether it can. An error or hang-up counts as ready: the read or write that follows reports it.
///
/// `timeout` of `None` waits without limit. Interrupted by a signal, it reports nothing as ready.
pub(crate) fn poll<const N: usize>(
    interests: [(BorrowedFd<'_>, Interest); N],
    timeout: Option<Duration>,
) -> io::Result<[bool; N]> {
    let mut fds = interests.map(|(fd, interest)| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: match interest {
            Interest::Readable => libc::POLLIN,
            Interest::Writable => libc::POLLOUT,
        },
        revents: 0,
    });
    // Rounded up, so that a wait of less than a millisecond is not a busy loop.
    let timeout = timeout.map_or(-1, |timeout| {
        i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
    });
    let count = libc::nfds_t::try_from(N).unwrap_or(0);
    // SAFETY: `fds` is an array of N initialized `pollfd`, alive and exclusively ours during the call,
    // and the kernel writes only their `revents`.
    let result = unsafe { libc::poll(fds.as_mut_ptr(), count, timeout) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
        return Ok([false; N]);
    }
    Ok(fds.map(|fd| fd.revents != 0))
}

/// What to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interest {
    Readable,
    Writable,
}
