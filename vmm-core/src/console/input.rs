use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use sparkler_devices::serial::SerialPort;

use super::Input;
use super::worker::{Worker, WorkerState};
use crate::StartError;
use crate::control::Control;
use crate::machine::lock;
use crate::placement::Threads;
use crate::sys::poll::{Interest, poll};
use crate::sys::wake::Wake;

/// How the UART tells the input thread that it has room again.
#[derive(Debug)]
pub(crate) struct InputSpace {
    wanted: AtomicBool,
    /// While the machine is paused.
    closed: Mutex<bool>,
    wake: Wake,
}

impl InputSpace {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { wanted: AtomicBool::new(false), closed: Mutex::new(false), wake: Wake::new()? })
    }

    /// Keeps input from the UART, or lets it go on. When this returns, none is on its way.
    pub(crate) fn set_closed(&self, closed: bool) {
        *lock(&self.closed) = closed;
        self.wake.wake();
    }

    /// Hands over as many of `bytes` as the UART takes.
    fn enqueue(&self, bytes: &[u8], serial: &SerialPort) -> usize {
        let closed = lock(&self.closed);
        if *closed { 0 } else { serial.enqueue(bytes) }
    }

    /// The UART may take bytes again. Costs nothing unless somebody waits for it.
    pub(crate) fn available(&self) {
        if self.wanted.swap(false, Ordering::SeqCst) {
            self.wake.wake();
        }
    }
}

/// Starts the thread that moves bytes from `input` to the guest, no faster than it reads them.
pub(super) fn start(
    mut input: Input,
    serial: Arc<SerialPort>,
    space: Arc<InputSpace>,
    placed: &Arc<Threads>,
    control: &Arc<Control>,
) -> Result<Worker, StartError> {
    Worker::start("console-in", space.wake.clone(), placed, control, move |state| {
        if let Err(error) = copy(&mut input, &serial, &space, state) {
            let name = &state.name;
            log::warn!("the reader of {name} failed, the guest gets no more input: {error}");
        }
    })
}

/// Returns at the end of the input, or when asked to finish.
fn copy(
    input: &mut Input,
    serial: &SerialPort,
    space: &InputSpace,
    state: &WorkerState,
) -> io::Result<()> {
    let mut buffer = [0; 64];
    while input.wait_readable(state)? {
        let count = match input.read(&mut buffer, state) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if input.may_try_again(&error) => continue,
            Err(error) => return Err(error),
        };
        give(buffer.get(..count).unwrap_or_default(), serial, space, state)?;
    }
    Ok(())
}

/// Hands over all of `bytes`, waiting for the guest to make room, or until asked to finish.
fn give(
    mut bytes: &[u8],
    serial: &SerialPort,
    space: &InputSpace,
    state: &WorkerState,
) -> io::Result<()> {
    while !bytes.is_empty() && !state.is_finishing() {
        // Said before the try, so that room made between the try and the wait is heard of.
        space.wanted.store(true, Ordering::SeqCst);
        let taken = space.enqueue(bytes, serial);
        bytes = bytes.get(taken..).unwrap_or_default();
        if taken == 0 {
            poll([(state.wake.as_fd(), Interest::Readable)], None)?;
            state.wake.clear();
        }
    }
    Ok(())
}

impl Input {
    /// Waits until a read will not block; false when asked to finish.
    fn wait_readable(&self, state: &WorkerState) -> io::Result<bool> {
        let Self::Pollable(reader) = self else { return Ok(!state.is_finishing()) };
        loop {
            if state.is_finishing() {
                return Ok(false);
            }
            let interests =
                [(reader.as_fd(), Interest::Readable), (state.wake.as_fd(), Interest::Readable)];
            let [readable, woken] = poll(interests, None)?;
            if woken {
                state.wake.clear();
            }
            if readable {
                return Ok(true);
            }
        }
    }

    /// A descriptor that was ready and is not any more gets polled again. A reader that we cannot poll
    /// must not say "not now": trying again would be a busy loop.
    fn may_try_again(&self, error: &io::Error) -> bool {
        match error.kind() {
            ErrorKind::Interrupted => true,
            ErrorKind::WouldBlock => matches!(self, Self::Pollable(_)),
            _ => false,
        }
    }

    fn read(&mut self, buffer: &mut [u8], state: &WorkerState) -> io::Result<usize> {
        match self {
            Self::Blocking(reader) => state.uninterruptible(|| reader.read(buffer)),
            Self::Pollable(reader) => reader.read(buffer),
        }
    }
}
