use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use sparkler_devices::serial::OutputBuffer;

use super::Output;
use super::worker::{Worker, WorkerState};
use crate::StartError;
use crate::control::Control;
use crate::placement::Threads;
use crate::sys::poll::{Interest, poll};
use crate::sys::wake::Wake;

/// A pipe that polls as writable takes this much without blocking (`PIPE_BUF`).
const CHUNK: usize = 4096;

/// A guest prints byte by byte. Between two writes the thread waits this long for more to come, so that
/// a line costs one write and one wake-up, not one for each byte.
const GATHER: Duration = Duration::from_millis(2);

/// Starts the thread that moves the guest's output from `buffer` to `output`.
pub(super) fn start(
    mut output: Output,
    buffer: Arc<OutputBuffer>,
    wake: &Wake,
    placed: &Arc<Threads>,
    control: &Arc<Control>,
) -> Result<Worker, StartError> {
    Worker::start("console-out", wake.clone(), placed, control, move |state| {
        let _closed = CloseOnDrop(Arc::clone(&buffer));
        if let Err(error) = copy(&buffer, &mut output, state) {
            let name = &state.name;
            log::warn!("the writer of {name} failed, further output is dropped: {error}");
        }
    })
}

/// When the thread ends, also by a panic of the writer, whatever comes then has nowhere to go: it is
/// counted as dropped.
struct CloseOnDrop(Arc<OutputBuffer>);

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Returns when asked to finish and nothing is left, when abandoned, or when the writer fails.
fn copy(buffer: &OutputBuffer, output: &mut Output, state: &WorkerState) -> io::Result<()> {
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        if buffer.take_or_sleep(&mut chunk, CHUNK) == 0 {
            if state.is_finishing() {
                return output.flush();
            }
            wait(state, None)?;
            continue;
        }
        let mut unwritten = Unwritten { bytes: &chunk, buffer };
        write_all(&mut unwritten.bytes, output, state)?;
        drop(unwritten);
        // A full chunk: there is more, or there soon will be.
        let gather = chunk.len() < CHUNK;
        chunk.clear();
        if state.is_abandoned() {
            return Ok(());
        }
        if gather && !state.is_finishing() {
            wait(state, Some(GATHER))?;
        }
    }
}

/// Bytes taken from the buffer. Those that the writer has not taken when this is dropped, for whatever
/// reason, are counted.
struct Unwritten<'a> {
    bytes: &'a [u8],
    buffer: &'a OutputBuffer,
}

impl Drop for Unwritten<'_> {
    fn drop(&mut self) {
        self.buffer.count_dropped(self.bytes.len());
    }
}

/// Writes `bytes`, which shrink to what could not be written.
fn write_all(bytes: &mut &[u8], output: &mut Output, state: &WorkerState) -> io::Result<()> {
    while !bytes.is_empty() && output.wait_writable(state)? {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => {
                *bytes = bytes.get(count..).unwrap_or_default();
                state.progress();
            }
            Err(error) if output.may_try_again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    if bytes.is_empty() { output.flush() } else { Ok(()) }
}

/// Waits until somebody wakes this thread, at most for `timeout`.
fn wait(state: &WorkerState, timeout: Option<Duration>) -> io::Result<()> {
    poll([(state.wake.as_fd(), Interest::Readable)], timeout)?;
    state.wake.clear();
    Ok(())
}

impl Output {
    /// Waits until a write will not block; false if that is no longer worth while.
    fn wait_writable(&self, state: &WorkerState) -> io::Result<bool> {
        let Self::Pollable(writer) = self else { return Ok(!state.is_abandoned()) };
        loop {
            if state.is_abandoned() {
                return Ok(false);
            }
            let interests =
                [(writer.as_fd(), Interest::Writable), (state.wake.as_fd(), Interest::Readable)];
            let [writable, woken] = poll(interests, None)?;
            if woken {
                state.wake.clear();
            }
            if writable {
                return Ok(true);
            }
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Blocking(writer) => writer.write(bytes),
            Self::Pollable(writer) => writer.write(bytes),
        }
    }

    /// A descriptor that was ready and is not any more gets polled again. A writer that we cannot poll
    /// must not say "not now": trying again would be a busy loop.
    fn may_try_again(&self, error: &io::Error) -> bool {
        match error.kind() {
            ErrorKind::Interrupted => true,
            ErrorKind::WouldBlock => matches!(self, Self::Pollable(_)),
            _ => false,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Blocking(writer) => writer.flush(),
            Self::Pollable(writer) => writer.flush(),
        }
    }
}
