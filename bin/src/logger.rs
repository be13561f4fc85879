//! What the library says through the `log` facade (a disk that fails, a network that is gone), on standard error.

use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    stdio::stderr,
};

use crate::report;

static LOGGER: Logger = Logger { later: Mutex::new(Vec::new()) };

/// From here on, warnings and errors are said as they come.
pub(crate) fn install() {
    // Nobody else sets one in this process.
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(LevelFilter::Warn);
    }
}

struct Logger {
    /// What standard error had no room for. Few: the library says each thing once.
    later: Mutex<Vec<String>>,
}

impl Log for Logger {
    /// The library's own words alone: it says each thing once, which crates below it do not promise.
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= Level::Warn && metadata.target().starts_with("sparkler")
    }

    /// Does not wait, as it is called by threads that work for the guest; unless somebody else writes to the same pipe
    /// just then, and that is full.
    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let message = record.args().to_string();
        // One after another: what has room for one line may have none for two.
        let mut later = self.later.lock().unwrap_or_else(PoisonError::into_inner);
        if has_room() {
            report::complain(&message);
        } else {
            later.push(message);
        }
    }

    fn flush(&self) {
        let later = std::mem::take(&mut *self.later.lock().unwrap_or_else(PoisonError::into_inner));
        later.iter().for_each(|message| report::complain(message));
    }
}

/// Whether standard error takes a line without making us wait.
fn has_room() -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut [PollFd::new(&stderr(), PollFlags::OUT)], Some(&now)) != Ok(0)
}
