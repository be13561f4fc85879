use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// A descriptor that gets readable when it is woken, for whoever waits by `poll`.
#[derive(Debug, Clone)]
pub(crate) struct Wake(Arc<EventFd>);

impl Wake {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?)))
    }

    pub(crate) fn wake(&self) {
        // It fails only when the counter is full, and then it is readable anyway.
        let _ = self.0.write(1);
    }

    /// Forgets the wake-ups so far.
    pub(crate) fn clear(&self) {
        let _ = self.0.read();
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the borrow of `self` lasts.
        unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) }
    }
}
