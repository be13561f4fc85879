//! What `sparkler` says about a machine that ended: exit code, messages, JSON.

use std::{
    error::Error,
    io::{self, Write},
};

use rustix::{
    stdio::stderr,
    termios::{OutputModes, tcgetattr},
};
use serde_json::{Value, json};
use sparkler::{Outcome, RunError, Stats, Timeline};

use crate::{metrics, waterfall::waterfall};

/// Exit code: nothing was started.
pub(crate) const REFUSED: u8 = 2;
/// Exit code: stopped with Ctrl-A x.
pub(crate) const STOPPED: u8 = 124;
/// Exit code: the monitor failed.
pub(crate) const FAILED: u8 = 125;
/// Exit code: the guest crashed.
pub(crate) const CRASHED: u8 = 126;

/// Exit code of a process that a signal ended, as shells count.
pub(crate) fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(signal).unwrap_or(0).wrapping_add(128)
}

/// Why no machine ran to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Before a guest instruction ran: usage, bad input, an unfit host.
    #[error(transparent)]
    Refused(Box<dyn Error>),
    /// Later, and not by the guest's doing.
    #[error(transparent)]
    Failed(Box<dyn Error>),
}

impl Failure {
    pub(crate) fn refused(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Refused(error.into())
    }

    pub(crate) fn failed(error: impl Into<Box<dyn Error>>) -> Self {
        Self::Failed(error.into())
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Refused(_) => REFUSED,
            Self::Failed(_) => FAILED,
        }
    }
}

/// What the process could not do, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what}")]
pub(crate) struct Cannot {
    pub(crate) what: &'static str,
    pub(crate) source: io::Error,
}

impl Cannot {
    /// For `map_err`, where nobody else says what was tried.
    pub(crate) fn to(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
        move |source| Failure::failed(Self { what, source })
    }
}

/// A line about the problem on standard error.
pub(crate) fn complain(message: &str) {
    // On a raw terminal a guest's line may have begun, and `\n` alone leads to no line's beginning.
    let raw = tcgetattr(stderr()).is_ok_and(|now| !now.output_modes.contains(OutputModes::OPOST));
    let (before, after) = if raw { ("\r\n", "\r\n") } else { ("", "\n") };
    // Where standard error is gone there is nobody to tell.
    let _ = io::stderr().write_all(format!("{before}sparkler: {message}{after}").as_bytes());
}

/// Prints to standard output. A reader that has seen enough (`| head`) is no failure.
pub(crate) fn print(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_ref()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Cannot::to("write to standard output")(error))
        }
        _ => Ok(()),
    }
}

/// The error and what caused it, the causes after colons.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(": ");
        line.push_str(&error.to_string());
        cause = error.source();
    }
    line
}

/// A machine that ran, from its end.
pub(crate) struct Ended {
    pub(crate) outcome: Result<Outcome, RunError>,
    /// The signal that ended it, if one did.
    pub(crate) signal: Option<i32>,
    pub(crate) timeline: Timeline,
    pub(crate) stats: Stats,
}

impl Ended {
    /// The exit code of the process.
    pub(crate) fn code(&self) -> u8 {
        match (&self.outcome, self.signal) {
            (Ok(Outcome::Exited(code)), _) => *code,
            (Ok(Outcome::PowerOff | Outcome::Reset), _) => 0,
            (Ok(Outcome::Stopped), Some(signal)) => code_of_signal(signal),
            (Ok(Outcome::Stopped), None) => STOPPED,
            (Ok(Outcome::Crashed(_)), _) => CRASHED,
            (Ok(_) | Err(_), _) => FAILED,
        }
    }

    /// What went wrong, a line each, on standard error.
    pub(crate) fn complain(&self) {
        let dropped = self.stats.console_output_dropped;
        if dropped > 0 {
            complain(&format!(
                "{dropped} bytes of console output were dropped: standard output took no more of it"
            ));
        }
        match &self.outcome {
            Ok(Outcome::Crashed(crash)) => complain(&crash.to_string()),
            Err(error) => complain(&chain(error)),
            Ok(_) => {}
        }
    }

    pub(crate) fn draw_timeline(&self) {
        let _ = io::stderr().write_all(waterfall(&self.timeline).as_bytes());
    }

    pub(crate) fn to_json(&self) -> Value {
        let (outcome, guest_exit_code, message) = match &self.outcome {
            Ok(Outcome::Exited(code)) => ("exited", Some(*code), None),
            Ok(Outcome::PowerOff) => ("power-off", None, None),
            Ok(Outcome::Reset) => ("reset", None, None),
            Ok(Outcome::Stopped) => ("stopped", None, None),
            Ok(Outcome::Crashed(crash)) => ("crashed", None, Some(crash.to_string())),
            Ok(other) => ("unknown", None, Some(other.to_string())),
            Err(error) => ("failed", None, Some(chain(error))),
        };
        let event = |e: &sparkler::Event| json!({ "name": e.name(), "at_ns": u64::try_from(e.at.as_nanos()).ok() });
        json!({
            "outcome": outcome,
            "exit_code": self.code(),
            "guest_exit_code": guest_exit_code,
            "signal": self.signal,
            "message": message,
            "timeline": self.timeline.events().iter().map(event).collect::<Vec<_>>(),
            "stats": metrics::to_json(&self.stats),
        })
    }
}

impl Failure {
    pub(crate) fn to_json(&self) -> Value {
        let outcome = match self {
            Self::Refused(_) => "refused",
            Self::Failed(_) => "failed",
        };
        json!({ "outcome": outcome, "exit_code": self.code(), "message": chain(self) })
    }
}

/// One JSON object on one line of standard error.
pub(crate) fn print_json(value: &Value) {
    let _ = writeln!(io::stderr(), "{value}");
}
