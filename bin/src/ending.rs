//! Who ended the machine from outside: a key or a signal.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, AtomicI32, Ordering},
};

use sparkler::VmHandle;

/// Asked for from any thread, even before the machine runs; the machine is stopped once.
#[derive(Default)]
pub(crate) struct Ending {
    asked: AtomicBool,
    /// The first signal that asked; 0 is none.
    signal: AtomicI32,
    stop: OnceLock<VmHandle>,
}

impl Ending {
    /// The machine runs: stops it at once if that was asked for already.
    pub(crate) fn arm(&self, stop: VmHandle) {
        let stop = self.stop.get_or_init(|| stop);
        // After the handle is in place: a request either sees it there, or is seen here.
        if self.asked.load(Ordering::SeqCst) {
            stop.stop();
        }
    }

    /// Ends the machine. Returns whether this was asked for before.
    pub(crate) fn ask(&self) -> bool {
        let before = self.asked.swap(true, Ordering::SeqCst);
        if let Some(stop) = self.stop.get() {
            stop.stop();
        }
        before
    }

    /// Ends the machine because of a signal. Returns whether this was asked for before.
    pub(crate) fn ask_by_signal(&self, signal: i32) -> bool {
        let _ = self.signal.compare_exchange(0, signal, Ordering::SeqCst, Ordering::SeqCst);
        self.ask()
    }

    /// The signal that ended the machine, if one did.
    pub(crate) fn signal(&self) -> Option<i32> {
        Some(self.signal.load(Ordering::SeqCst)).filter(|&n| n != 0)
    }
}
