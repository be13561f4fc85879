//! The terminal that standard input may be: raw while the guest has it, and as it was at every other moment.

use std::{
    io::{self, IsTerminal},
    panic,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rustix::{
    process::getpgrp,
    stdio::stdin,
    termios::{OptionalActions, Termios, tcgetattr, tcgetpgrp, tcsetattr},
};

/// Standard input, known to be a terminal.
#[derive(Debug)]
pub(crate) struct Terminal {
    /// The settings to go back to; `Some` while the terminal is raw.
    saved: Mutex<Option<Termios>>,
}

impl Terminal {
    /// Standard input, if it is a terminal.
    pub(crate) fn on_stdin() -> Option<Arc<Self>> {
        io::stdin().is_terminal().then(|| Arc::new(Self { saved: Mutex::new(None) }))
    }

    /// Whether this process may read the terminal and set its modes. A background job that did either would be stopped
    /// by the kernel (SIGTTIN, SIGTTOU).
    pub(crate) fn in_foreground() -> bool {
        // A terminal that is not the controlling one has no foreground, and no such rule.
        tcgetpgrp(stdin()).map_or(true, |group| group == getpgrp())
    }

    /// Makes the terminal raw, unless it is already, or this is a background job.
    pub(crate) fn enter(&self) {
        let mut saved = self.lock();
        if saved.is_none() {
            set_raw(&mut saved);
        }
    }

    /// Makes the terminal raw again after this process was stopped, when a shell may have changed its modes.
    pub(crate) fn reenter(&self) {
        set_raw(&mut self.lock());
    }

    /// Brings back what was there before [`enter`](Self::enter).
    pub(crate) fn leave(&self) {
        // In the background the modes are the shell's by now.
        if let Some(settings) = self.lock().take().filter(|_| Self::in_foreground()) {
            // `Now`: to wait for output to drain could take forever. A terminal that is gone needs no modes.
            let _ = tcsetattr(stdin(), OptionalActions::Now, &settings);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Termios>> {
        self.saved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn set_raw(saved: &mut Option<Termios>) {
    if !Terminal::in_foreground() {
        return;
    }
    let Ok(current) = tcgetattr(stdin()) else { return };
    let mut raw = current.clone();
    raw.make_raw();
    if tcsetattr(stdin(), OptionalActions::Now, &raw).is_ok() {
        saved.get_or_insert(current);
    }
}

/// The terminal is raw from `new` to drop, and a panic in any thread restores it before its message is printed.
#[derive(Debug)]
pub(crate) struct RawMode(Arc<Terminal>);

impl RawMode {
    pub(crate) fn new(terminal: Arc<Terminal>) -> Self {
        terminal.enter();
        let (previous, in_hook) = (panic::take_hook(), Arc::clone(&terminal));
        panic::set_hook(Box::new(move |info| {
            in_hook.leave();
            previous(info);
        }));
        Self(terminal)
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        self.0.leave();
    }
}
