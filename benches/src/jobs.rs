//! Jobs that a guest does one after another, and what is measured of each.
//!
//! The guest says `begin`, `end` and `result …` on lines of their own, and nothing between the first two,
//! so that the counters which are read then have nothing of the console in them.

use std::error::Error;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::counters::Source;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What is known of the jobs of a guest.
#[derive(Debug)]
pub struct Jobs<'a> {
    /// In the order in which they are done.
    pub names: &'a [&'static str],
    /// A guest of which nothing is heard for so long must have lost an interrupt, and is ended.
    pub patience: Duration,
}

impl Jobs<'_> {
    /// Starts `monitor`, with the guest's console on its standard output, and follows it; `started` does
    /// what is to be done besides. `read` reads counters, and `figures` makes of them, from before and
    /// after, and of a result what was measured of the job of a number.
    ///
    /// Of a guest that stands still or breaks down, it is what it came to, in order.
    ///
    /// # Errors
    /// If it does so before its first result; and what `started`, `read` and `figures` say.
    pub fn run<C: Copy, F>(
        &self,
        mut monitor: Command,
        started: impl FnOnce(&mut Child) -> Result<()>,
        mut read: impl FnMut(&Source) -> Result<C>,
        mut figures: impl FnMut(usize, [C; 2], &str) -> Result<F>,
    ) -> Result<Vec<F>> {
        let source = Source::before_start()?;
        let name = monitor.get_program().display().to_string();
        let child = monitor.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = child.map_err(|error| format!("{name}: {error}"))?;
        let source = source.started(child.id());
        let measured = started(&mut child)
            .and_then(|()| self.follow(&mut child, || read(&source), &mut figures));
        // It may have ended by itself.
        child.kill()?;
        child.wait()?;
        measured.map_err(|error| format!("{name}: {error}").into())
    }

    fn follow<C: Copy, F>(
        &self,
        child: &mut Child,
        mut read: impl FnMut() -> Result<C>,
        figures: &mut impl FnMut(usize, [C; 2], &str) -> Result<F>,
    ) -> Result<Vec<F>> {
        let console = child.stdout.take().ok_or("no console")?;
        let (sender, lines) = channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(console).lines().map_while(io::Result::ok);
            lines.try_for_each(|line| sender.send(line))
        });
        let (mut begin, mut end) = (None, None);
        let (mut measured, mut said) = (Vec::new(), String::new());
        // Not until it ends: what it does afterwards, a monitor's way of a reboot, is of no interest.
        while let Some(name) = self.names.get(measured.len()) {
            let line = match lines.recv_timeout(self.patience) {
                Ok(line) => line,
                Err(error) => {
                    let how = match error {
                        RecvTimeoutError::Timeout => "stood still",
                        RecvTimeoutError::Disconnected => "ended",
                    };
                    let what = format!("the guest {how} at {name:?}; it said:{said}");
                    if measured.is_empty() {
                        return Err(what.into());
                    }
                    println!("{what}");
                    break;
                }
            };
            match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
                ("begin", _) => begin = Some(read()?),
                ("end", _) => end = Some(read()?),
                ("result", result) => {
                    let counters = [begin.take(), end.take()];
                    let [Some(begin), Some(end)] = counters else {
                        return Err(format!("a result of {name:?} without begin and end").into());
                    };
                    measured.push(figures(measured.len(), [begin, end], result)?);
                }
                _ => said += &format!("\n  {line}"),
            }
        }
        Ok(measured)
    }
}
