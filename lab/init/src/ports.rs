//! The two I/O ports that the guest speaks to its monitor with.

use std::arch::asm;
use std::io;

/// One byte written here ends the machine with that exit code.
const EXIT_PORT: u16 = 0xf4;

/// One byte written here is the number of a boot mark.
const BOOT_MARK_PORT: u16 = 0xf8;

/// Leave to use both ports, which the kernel has given to this thread.
///
/// The leave is a thread's own, hence neither `Send` nor `Sync`.
#[derive(Debug)]
pub(crate) struct Ports(std::marker::PhantomData<*const ()>);

impl Ports {
    /// Asks the kernel for the ports; fails unless the caller has `CAP_SYS_RAWIO`.
    pub(crate) fn open() -> io::Result<Self> {
        for port in [EXIT_PORT, BOOT_MARK_PORT] {
            // SAFETY: ioperm takes no pointer; it only widens what this thread's `out` may reach.
            if unsafe { libc::ioperm(port.into(), 1, 1) } != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(Self(std::marker::PhantomData))
    }

    pub(crate) fn boot_mark(&self, mark: u8) {
        self.write(BOOT_MARK_PORT, mark);
    }

    /// Ends the machine; returns only where no exit port is.
    pub(crate) fn exit(&self, code: u8) {
        self.write(EXIT_PORT, code);
    }

    fn write(&self, port: u16, value: u8) {
        // SAFETY: `open` got leave for both ports on this thread, and `out` touches no memory.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags));
        }
    }
}
