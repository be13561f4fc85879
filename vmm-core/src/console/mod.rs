//! The host's end of the guest's serial port.

mod input;
mod output;
#[cfg(test)]
mod tests;
mod worker;

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

pub(crate) use self::input::InputSpace;
use self::worker::Worker;
use crate::StartError;
use crate::control::Control;
use crate::machine::SerialConsole;
use crate::placement::Threads;

/// Where the guest's console (COM1, `ttyS0`) goes, and where its input comes from.
///
/// A machine without one discards what its guest prints and gives it nothing to read. Each direction
/// that is given has one thread while the machine runs. A slow or blocked writer never holds up the
/// guest: up to [`BUFFER_SIZE`](Self::BUFFER_SIZE) bytes wait for it, and what comes beyond is dropped
/// and counted in [`Stats::console_output_dropped`](crate::Stats::console_output_dropped).
///
/// When the guest ends, what waits is still written, as long as the writer makes progress; after
/// [`DRAIN_TIMEOUT`](Self::DRAIN_TIMEOUT) without any, the rest is dropped and counted too. A machine
/// that is stopped or dropped waits no longer than that in all.
///
/// ```
/// use std::io::{empty, sink};
/// use sparkler::Console;
///
/// let here = Console::stdio()?;                        // standard input and output
/// let discarded = Console::new(empty(), sink());       // any Read and any Write
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct Console {
    input: Option<Input>,
    output: Option<Output>,
    drain_timeout: Duration,
}

enum Input {
    Blocking(Box<dyn Read + Send>),
    Pollable(Box<dyn PollableRead>),
}

enum Output {
    Blocking(Box<dyn Write + Send>),
    Pollable(Box<dyn PollableWrite>),
}

trait PollableRead: Read + AsFd + Send {}
impl<T: Read + AsFd + Send> PollableRead for T {}

trait PollableWrite: Write + AsFd + Send {}
impl<T: Write + AsFd + Send> PollableWrite for T {}

impl Console {
    /// Bytes of output that wait for a slow writer: 256 KiB.
    pub const BUFFER_SIZE: usize = 256 << 10;
    /// How long an ended machine waits for a writer that makes no progress: half a second.
    pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(500);

    /// A console on this process's standard input and output, through descriptors of its own. No terminal
    /// mode is changed; what Rust's own `stdin()` has buffered already is not seen.
    ///
    /// # Errors
    /// If one of the two is closed, or no descriptor is left.
    pub fn stdio() -> io::Result<Self> {
        let input = io::stdin().as_fd().try_clone_to_owned()?;
        let output = io::stdout().as_fd().try_clone_to_owned()?;
        Ok(Self::pollable(File::from(input), File::from(output)))
    }

    /// A console on any reader and writer.
    ///
    /// Nobody can interrupt a `read` or `write` of a stranger. If one blocks for good, its thread
    /// outlives the machine, with the reader or writer in it, until it returns. Where the two have file
    /// descriptors, [`pollable`](Self::pollable) has no such limit.
    pub fn new(reader: impl Read + Send + 'static, writer: impl Write + Send + 'static) -> Self {
        Self { input: Some(Input::Blocking(Box::new(reader))), ..Self::output(writer) }
    }

    /// A console without input, on any writer. See [`new`](Self::new) for writers that block.
    pub fn output(writer: impl Write + Send + 'static) -> Self {
        Self::with_output(Output::Blocking(Box::new(writer)))
    }

    /// A console on a reader and a writer with file descriptors that `poll(2)` works on: pipes, sockets,
    /// terminals, regular files. They are touched only when they are ready.
    ///
    /// The reader must not buffer, as [`Stdin`](std::io::Stdin) does: what it has taken in and not given
    /// out, its descriptor does not tell of.
    pub fn pollable(
        reader: impl Read + AsFd + Send + 'static,
        writer: impl Write + AsFd + Send + 'static,
    ) -> Self {
        Self { input: Some(Input::Pollable(Box::new(reader))), ..Self::pollable_output(writer) }
    }

    /// A console without input, on a writer with a file descriptor. See [`pollable`](Self::pollable).
    pub fn pollable_output(writer: impl Write + AsFd + Send + 'static) -> Self {
        Self::with_output(Output::Pollable(Box::new(writer)))
    }

    /// Waits up to `timeout`, instead of [`DRAIN_TIMEOUT`](Self::DRAIN_TIMEOUT), for a writer that makes
    /// no progress after the guest has ended.
    #[must_use]
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.drain_timeout = timeout;
        self
    }

    fn with_output(output: Output) -> Self {
        Self { input: None, output: Some(output), drain_timeout: Self::DRAIN_TIMEOUT }
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = |pollable| if pollable { "pollable" } else { "blocking" };
        let input = self.input.as_ref().map(|input| kind(matches!(input, Input::Pollable(_))));
        let output = self.output.as_ref().map(|output| kind(matches!(output, Output::Pollable(_))));
        f.debug_struct("Console").field("input", &input).field("output", &output).finish()
    }
}

/// The threads of a console, while its machine runs.
#[derive(Debug, Default)]
pub(crate) struct ConsoleThreads {
    input: Option<Worker>,
    output: Option<Worker>,
    drain_timeout: Duration,
}

impl ConsoleThreads {
    /// Starts a thread for each direction that `console` has.
    pub(crate) fn start(
        console: Console,
        serial: &SerialConsole,
        placed: &Arc<Threads>,
        control: &Arc<Control>,
    ) -> Result<Self, StartError> {
        let mut threads = Self { input: None, output: None, drain_timeout: console.drain_timeout };
        if let Some(output) = console.output {
            threads.output = Some(output::start(
                output,
                Arc::clone(&serial.output),
                &serial.wake_output,
                placed,
                control,
            )?);
        }
        if let Some(input) = console.input {
            threads.input = Some(input::start(
                input,
                Arc::clone(&serial.port),
                Arc::clone(&serial.input_space),
                placed,
                control,
            )?);
        }
        Ok(threads)
    }

    /// Ends the threads: input at once, output when all is written or the writer makes no progress.
    /// With `hurry` there is [`Console::DRAIN_TIMEOUT`] at most for all of it, progress or not.
    pub(crate) fn finish(&mut self, hurry: bool) {
        if let Some(input) = self.input.take() {
            input.finish(Duration::ZERO, true);
        }
        if let Some(output) = self.output.take() {
            let patience = self.drain_timeout;
            let patience = if hurry { patience.min(Console::DRAIN_TIMEOUT) } else { patience };
            output.finish(patience, hurry);
        }
    }
}

/// For a machine whose start fails half-way.
impl Drop for ConsoleThreads {
    fn drop(&mut self) {
        self.finish(true);
    }
}
