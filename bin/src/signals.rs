//! Signals that end or suspend the process, turned into an end of the machine and a sane terminal.

use std::{fs, io, process, sync::Arc};

use signal_hook::{
    consts::{SIGCONT, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGTSTP},
    iterator::Signals,
    low_level::emulate_default_handler,
};

use crate::{ending::Ending, report, terminal::Terminal, threads};

const TERMINATING: [i32; 4] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT];
const JOB_CONTROL: [i32; 2] = [SIGTSTP, SIGCONT];

/// Caught, and not yet acted on.
pub(crate) struct CaughtSignals(Signals);

/// Catches the signals from here on, without a thread yet. What the parent had ignored stays
/// ignored (`nohup`, background jobs of a script).
pub(crate) fn catch(terminal: Option<&Terminal>) -> io::Result<CaughtSignals> {
    let ignored = ignored_by_parent();
    let job_control = terminal.map_or(&[] as &[i32], |_| &JOB_CONTROL);
    let wanted = TERMINATING.iter().chain(job_control).filter(|&&n| ignored >> (n - 1) & 1 == 0);
    Signals::new(wanted).map(CaughtSignals)
}

/// Bit n-1 stands for signal n; none if /proc does not tell.
fn ignored_by_parent() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0)
}

impl CaughtSignals {
    /// Acts on them, those caught already first, in a thread that lasts as long as the process.
    pub(crate) fn act(
        self,
        ending: Arc<Ending>,
        terminal: Option<Arc<Terminal>>,
    ) -> io::Result<()> {
        let act = move || self.run(&ending, terminal.as_deref());
        threads::spawn("signals", act).map(drop)
    }

    fn run(mut self, ending: &Ending, terminal: Option<&Terminal>) {
        for signal in self.0.forever() {
            match signal {
                SIGTSTP => suspend(terminal),
                SIGCONT => terminal.into_iter().for_each(Terminal::reenter),
                _ if ending.ask_by_signal(signal) => {
                    // Asked twice: do not wait for an orderly end any longer.
                    terminal.into_iter().for_each(Terminal::leave);
                    process::exit(i32::from(report::code_of_signal(signal)));
                }
                _ => {}
            }
        }
    }
}

/// Stops this process, as SIGTSTP does where nobody catches it. SIGCONT follows.
fn suspend(terminal: Option<&Terminal>) {
    terminal.into_iter().for_each(Terminal::leave);
    // Fails for no signal that has a default action.
    let _ = emulate_default_handler(SIGTSTP);
}
