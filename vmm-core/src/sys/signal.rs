//! The kick: how one thread makes another leave `KVM_RUN`, without a signal handler.
//!
//! A vCPU thread blocks the kick signal for good ([`block_signals`]) and asks KVM to unblock it while
//! the guest runs ([`unblock_kick_in_guest`]). A kick that arrives at any other moment stays pending,
//! so none is lost: the next `KVM_RUN` returns at once with EINTR. Afterwards the thread takes the
//! pending signal away ([`consume_kicks`]). As it is never delivered, its disposition in the process
//! does not matter and is never touched.

use std::io;
use std::mem::MaybeUninit;
use std::ptr;

use kvm_bindings::{KVMIO, kvm_signal_mask};
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);

/// The kick. Nobody else uses this signal: it was meant for coprocessors that never came. A real-time
/// signal would not do, for sending one can fail (`RLIMIT_SIGPENDING`); a standard one is never lost. It
/// is only ever sent to one of our own threads.
const KICK: libc::c_int = libc::SIGSTKFLT;

/// A thread that can be kicked. It must live as long as this value is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ThreadId(libc::pid_t);

impl ThreadId {
    /// The calling thread.
    pub(crate) fn current() -> Self {
        // SAFETY: it has no precondition and cannot fail.
        Self(unsafe { libc::gettid() })
    }

    /// Sends the kick.
    ///
    /// # Safety
    /// The thread has not ended: its number may belong to another thread by then.
    pub(crate) unsafe fn kick(self) {
        // SAFETY: the numbers are those of a live thread of this process, as the caller promises, and of
        // a valid signal, which that thread blocks. No memory is involved.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), self.0, KICK) };
    }
}

/// Blocks every signal in the calling thread but those that a fault of its own raises, so that the
/// process's handlers run on the process's own threads, and the kick stays pending.
pub(crate) fn block_signals() -> io::Result<()> {
    let faults =
        [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    let set = full_set_without(&faults);
    // SAFETY: `set` is an initialized signal set; a null old set is allowed.
    let result = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &set, ptr::null_mut()) };
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

/// From now on, the kick is unblocked while `vcpu` is inside `KVM_RUN`, and nothing else is.
pub(crate) fn unblock_kick_in_guest(vcpu: &VcpuFd) -> Result<(), errno::Error> {
    /// `struct kvm_signal_mask` with the kernel's 64-bit signal set in its flexible array.
    #[repr(C, packed)]
    struct SignalMask {
        len: u32,
        set: u64,
    }
    // Signal N is bit N - 1 in the kernel's set.
    let kick = u32::try_from(KICK - 1).ok().and_then(|bit| 1u64.checked_shl(bit));
    let mask = SignalMask { len: 8, set: !kick.unwrap_or(0) };
    // SAFETY: the ioctl reads `len` and then `len` bytes of signal set, which `mask` holds.
    let result = unsafe { ioctl_with_ref(vcpu, KVM_SET_SIGNAL_MASK(), &mask) };
    if result == 0 { Ok(()) } else { errno::errno_result() }
}

/// Takes away the kicks that are pending for the calling thread, without waiting.
pub(crate) fn consume_kicks() {
    let mut set = empty_set();
    // SAFETY: `set` is an initialized signal set, and the signal number is a valid one.
    unsafe { libc::sigaddset(&mut set, KICK) };
    let at_once = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    loop {
        // SAFETY: `set` and `at_once` are initialized; a null siginfo is allowed.
        let signal = unsafe { libc::sigtimedwait(&set, ptr::null_mut(), &at_once) };
        let interrupted =
            signal < 0 && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted;
        if signal < 0 && !interrupted {
            return; // EAGAIN: none left.
        }
    }
}

fn empty_set() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigemptyset initializes the whole set and cannot fail on a valid pointer.
    unsafe {
        libc::sigemptyset(set.as_mut_ptr());
        set.assume_init()
    }
}

fn full_set_without(signals: &[libc::c_int]) -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initializes the whole set; sigdelset changes one bit of a valid set.
    unsafe {
        libc::sigfillset(set.as_mut_ptr());
        for &signal in signals {
            libc::sigdelset(set.as_mut_ptr(), signal);
        }
        set.assume_init()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kick_stays_pending_until_it_is_consumed_and_never_runs_a_handler() {
        let pending = || {
            let mut set = empty_set();
            // SAFETY: `set` is valid for the kernel to fill and to be asked.
            unsafe {
                libc::sigpending(&mut set);
                libc::sigismember(&set, KICK) == 1
            }
        };
        // A thread of its own: the mask must not outlive the test. The default disposition of the
        // signal would end the process if it were ever delivered.
        std::thread::spawn(move || {
            block_signals().unwrap();
            assert!(!pending());
            for _ in 0..3 {
                // SAFETY: this very thread is alive.
                unsafe { ThreadId::current().kick() };
            }
            assert!(pending());
            consume_kicks();
            assert!(!pending());
        })
        .join()
        .unwrap();
    }
}
