//! Frames of the guest on their way to the backend.

use std::time::Instant;

use super::super::token_bucket::{Cost, Limiter};
use super::super::{Chain, DeviceError, Queue, QueueError};
use super::backend::{BackendError, Frame, MAX_FRAME_LEN, MIN_FRAME_LEN, NetBackend};
use super::header::{FrameHeader, HEADER_LEN};
use super::mitigation::Mitigation;
use super::offloads::Offloads;
use super::state::State;
use super::stats::count;

/// How many frames go before the driver hears of it, and other queues have their turn.
const BATCH: u32 = 64;

/// One transmit queue.
#[derive(Debug)]
pub(super) struct Transmit {
    queue: Queue,
    /// What the driver may leave undone.
    offloads: Offloads,
    /// A frame that could not go yet. No other one goes before it.
    parked: Option<Parked>,
    /// The backend takes nothing now.
    blocked: bool,
    /// It has taken nothing since it said so first.
    paused: bool,
    /// The backend holds frames that it could not pass on yet.
    unflushed: bool,
    /// Until then the rate limit lets nothing through.
    held_until: Option<Instant>,
    mitigation: Mitigation,
    /// When to look at the queue without having been notified.
    look_at: Option<Instant>,
}

#[derive(Debug)]
struct Parked {
    chain: Chain,
    /// It has counted for the rate limit.
    charged: bool,
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moved {
    /// There may be more.
    Some,
    Nothing,
    /// The backend is gone.
    Gone,
}

impl Transmit {
    pub(super) fn new(queue: Queue, offloads: Offloads) -> Self {
        let (parked, held_until) = (None, None);
        Self {
            queue,
            offloads,
            parked,
            blocked: false,
            paused: false,
            // Those of an earlier driver.
            unflushed: true,
            held_until,
            mitigation: Mitigation::new(),
            look_at: None,
        }
    }

    /// The backend may take frames again.
    pub(super) fn unblock(&mut self) {
        self.blocked = false;
    }

    /// There is no backend any more: nothing is to be waited for.
    pub(super) fn backend_gone(&mut self) {
        (self.blocked, self.unflushed) = (false, false);
    }

    /// Whether the backend must become writable first.
    pub(super) fn is_blocked(&self) -> bool {
        self.blocked || self.unflushed
    }

    /// When `work` wants to look again in any case: the rate limit lets something through then, or more
    /// frames are expected to have come.
    pub(super) fn look_at(&self) -> Option<Instant> {
        self.held_until.or(self.look_at)
    }

    /// Tells the driver what it was not told yet.
    pub(super) fn notify(&mut self) -> Result<(), QueueError> {
        self.mitigation.told();
        self.queue.notify()
    }

    pub(super) fn disable_notifications(&mut self) -> Result<(), DeviceError> {
        Ok(self.queue.disable_notifications()?)
    }

    /// Asks for notifications if there is anything to be done with a frame, unless it is to be looked for.
    /// Whether there is one.
    pub(super) fn more_came(&mut self) -> Result<bool, DeviceError> {
        self.look_at = None;
        if self.blocked || self.held_until.is_some() {
            return Ok(false);
        }
        let now = Instant::now();
        if let Some(rest) = self.mitigation.rest(now) {
            self.look_at = now.checked_add(rest);
            return Ok(false);
        }
        self.notify()?;
        Ok(self.queue.enable_notifications()?)
    }

    /// Sends a batch of frames. Without a `backend` they are dropped.
    pub(super) fn work(
        &mut self,
        mut backend: Option<&mut dyn NetBackend>,
        limiter: &mut Option<Limiter>,
        state: &State,
    ) -> Result<Moved, DeviceError> {
        // Without a link, frames are dropped, also the one that the backend did not take.
        self.blocked &= state.link();
        if self.blocked {
            return Ok(Moved::Nothing);
        }
        let mut moved = Moved::Nothing;
        let (mut bytes, mut frames, mut ended) = (0, 0, 0u32);
        while ended < BATCH {
            let Some(chain) = self.next(limiter, state)? else { break };
            let link = state.link();
            let outcome = match &mut backend {
                Some(backend) if link => send(&chain, self.offloads, *backend),
                _ => Err(Fault::NoLink),
            };
            match outcome {
                Ok(len) => (frames, bytes) = (add(frames, 1), add(bytes, len)),
                Err(Fault::Malformed) => count(&state.counters.sent_malformed, 1),
                Err(Fault::NoLink) => count(&state.counters.sent_without_link, 1),
                Err(Fault::Backend(BackendError::Refused)) => {
                    count(&state.counters.sent_refused, 1);
                }
                Err(Fault::Backend(BackendError::WouldBlock)) => {
                    if !std::mem::replace(&mut self.paused, true) {
                        count(&state.counters.send_paused, 1);
                    }
                    self.parked = Some(Parked { chain, charged: true });
                    self.blocked = true;
                    break;
                }
                Err(Fault::Backend(BackendError::Gone(error))) => {
                    state.log_gone(&error);
                    self.parked = Some(Parked { chain, charged: true });
                    (backend, moved) = (None, Moved::Gone);
                    break;
                }
            }
            self.paused = false;
            self.queue.push(chain, 0)?;
            ended = ended.saturating_add(1);
            moved = Moved::Some;
        }
        count(&state.counters.sent_frames, frames);
        count(&state.counters.sent_bytes, bytes);
        // The driver can go on while the backend flushes.
        self.looked(ended)?;
        match self.flush(backend, frames > 0, state) {
            Moved::Gone => Ok(Moved::Gone),
            _ => Ok(moved),
        }
    }

    /// So many frames were there. Tells the driver if it is to hear of them now.
    fn looked(&mut self, frames: u32) -> Result<(), DeviceError> {
        let now = Instant::now();
        self.mitigation.looked(frames, now);
        if self.blocked || self.held_until.is_some() || self.mitigation.rest(now).is_none() {
            self.notify()?;
        }
        Ok(())
    }

    fn flush(&mut self, backend: Option<&mut dyn NetBackend>, sent: bool, state: &State) -> Moved {
        let Some(backend) = backend.filter(|_| sent || self.unflushed) else {
            return Moved::Nothing;
        };
        match backend.flush() {
            Ok(()) | Err(BackendError::Refused) => self.unflushed = false,
            Err(BackendError::WouldBlock) => self.unflushed = true,
            Err(BackendError::Gone(error)) => {
                state.log_gone(&error);
                self.unflushed = false;
                return Moved::Gone;
            }
        }
        Moved::Nothing
    }

    /// The next frame, if the rate limit lets it through.
    fn next(
        &mut self,
        limiter: &mut Option<Limiter>,
        state: &State,
    ) -> Result<Option<Chain>, DeviceError> {
        self.held_until = None;
        let (chain, new) = match self.parked.take() {
            Some(Parked { chain, charged: true }) => return Ok(Some(chain)),
            Some(Parked { chain, .. }) => (chain, false),
            None => match self.queue.pop()? {
                Some(chain) => (chain, true),
                None => return Ok(None),
            },
        };
        let Some(limiter) = limiter else { return Ok(Some(chain)) };
        let now = Instant::now();
        self.held_until = limiter.held_until(now);
        if self.held_until.is_some() {
            count(&state.counters.throttled, u64::from(new));
            self.parked = Some(Parked { chain, charged: false });
            return Ok(None);
        }
        limiter.charge(Cost::one(chain.readable_len().saturating_sub(HEADER_LEN)), now);
        Ok(Some(chain))
    }
}

/// Why a frame did not go.
enum Fault {
    Malformed,
    NoLink,
    Backend(BackendError),
}

/// Sends what `chain` holds: how many bytes.
fn send(chain: &Chain, allowed: Offloads, backend: &mut dyn NetBackend) -> Result<usize, Fault> {
    let mut header = [0; HEADER_LEN];
    let len = chain.readable_len().saturating_sub(HEADER_LEN);
    if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) {
        return Err(Fault::Malformed);
    }
    // Read once: the guest may change it after it was checked.
    chain.read_at(0, &mut header).map_err(|_| Fault::Malformed)?;
    let header = FrameHeader::from_driver(header, len, allowed).ok_or(Fault::Malformed)?;
    backend.send(&Frame::new(chain, header)).map_err(Fault::Backend)?;
    Ok(len)
}

fn add(sum: u64, more: impl TryInto<u64>) -> u64 {
    sum.saturating_add(more.try_into().unwrap_or(0))
}
