use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

/// An interrupt line, as a device sees it: something to pull.
///
/// An [`EventFd`] is one (the machine connects it to an input of the interrupt controller).
pub trait Interrupt: Send + Sync {
    /// Raises the interrupt once (an edge).
    ///
    /// # Errors
    /// The error of the underlying file descriptor, if there is one.
    fn trigger(&self) -> io::Result<()>;
}

impl Interrupt for EventFd {
    fn trigger(&self) -> io::Result<()> {
        self.write(1)
    }
}

impl<T: Interrupt + ?Sized> Interrupt for Arc<T> {
    fn trigger(&self) -> io::Result<()> {
        (**self).trigger()
    }
}
