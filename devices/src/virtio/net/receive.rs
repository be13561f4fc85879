//! Frames of the backend on their way into the guest's buffers.

use std::collections::VecDeque;
use std::time::Instant;

use thiserror::Error;

use super::super::token_bucket::{Cost, Limiter};
use super::super::{Chain, DeviceError, Queue};
use super::backend::{BackendError, MIN_FRAME_LEN, NetBackend, Room};
use super::filter::{Address, Filter};
use super::header::{self, HEADER_LEN, NUM_BUFFERS};
use super::offloads::Offloads;
use super::room::SPILL_LEN;
use super::run;
use super::state::State;
use super::stats::count;
use super::transmit::Moved;

/// How many frames come before the driver hears of them, and other queues have their turn.
const BATCH: usize = 64;
/// Bytes of buffers that are taken from the driver before a frame comes: enough for the usual one, or
/// for any. What does not fit is copied, which is worth avoiding for large frames only.
const USUAL: usize = 2048;
/// After so many usual frames one after the other, no large one is expected.
const QUIET: u32 = 32;
/// No more buffers are taken if these are in so many pieces.
const MOST_SEGMENTS: usize = 256;
/// A frame goes straight into buffers of at most so many pieces, and is copied to others: a call to the
/// kernel takes 1024. After a frame that was dropped there may be any number.
const MOST_DIRECT_SEGMENTS: usize = 2 * MOST_SEGMENTS;

/// A driver offered a buffer that cannot even hold a header (virtio 1.2, 5.1.6.3.1).
#[derive(Debug, Error)]
#[error("a buffer for a frame has {len} bytes, fewer than the {HEADER_LEN} of its header")]
struct NoHeader {
    len: usize,
}

/// One receive queue.
#[derive(Debug)]
pub(super) struct Receive {
    queue: Queue,
    mergeable: bool,
    pub(super) offloads: Offloads,
    lengths: Lengths,
    /// Buffers that were taken from the driver, in order.
    chains: VecDeque<Chain>,
    /// Where a frame goes beyond these.
    spill: Vec<u8>,
    /// How many bytes of buffers to take before a frame comes.
    target: usize,
    quiet: u32,
    /// A frame that waits for more buffers.
    waiting: Option<Arrived>,
    /// The backend may have frames.
    ready: bool,
    /// Buffers are missing: all that could be done without more of them is done.
    starved: bool,
    /// They have been missing since the last one was taken.
    paused: bool,
    held_until: Option<Instant>,
}

/// Of frames that are not to be cut up.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lengths {
    /// Longer ones are dropped.
    pub(super) longest: usize,
    /// The driver must have room for these. Longer ones do not wait for it.
    pub(super) promised: usize,
}

/// A header and frame, the first `direct` bytes of which are in the chains.
#[derive(Debug, Clone, Copy)]
struct Arrived {
    len: usize,
    direct: usize,
}

impl Receive {
    pub(super) fn new(queue: Queue, mergeable: bool, offloads: Offloads, lengths: Lengths) -> Self {
        Self {
            queue,
            mergeable,
            offloads,
            lengths,
            chains: VecDeque::new(),
            spill: vec![0; SPILL_LEN],
            target: USUAL,
            quiet: 0,
            waiting: None,
            ready: true,
            starved: false,
            paused: false,
            held_until: None,
        }
    }

    /// The backend may have frames.
    pub(super) fn set_ready(&mut self) {
        self.ready = true;
    }

    /// Whether the backend must become readable first.
    pub(super) fn is_waiting(&self) -> bool {
        !self.ready
    }

    pub(super) fn held_until(&self) -> Option<Instant> {
        self.held_until
    }

    pub(super) fn disable_notifications(&mut self) -> Result<(), DeviceError> {
        Ok(self.queue.disable_notifications()?)
    }

    /// Asks for notifications if buffers are missing. Whether there are some.
    pub(super) fn more_came(&mut self) -> Result<bool, DeviceError> {
        Ok(self.starved && self.queue.enable_notifications()?)
    }

    /// Receives a batch of frames.
    pub(super) fn work(
        &mut self,
        backend: &mut dyn NetBackend,
        limiter: &mut Option<Limiter>,
        filter: &Filter,
        state: &State,
    ) -> Result<Moved, DeviceError> {
        let mut moved = Moved::Nothing;
        self.starved = false;
        for _ in 0..BATCH {
            if let Some(frame) = self.waiting {
                if !self.deliver(frame, state)? {
                    break;
                }
                moved = Moved::Some;
            }
            if !self.ready || self.is_held(limiter, state) {
                break;
            }
            let link = state.link();
            if link && !self.gather(state)? {
                break;
            }
            match self.receive(backend, link) {
                Ok(frame) => self.arrived(frame, link, limiter, filter, state)?,
                Err(BackendError::WouldBlock) => {
                    self.ready = false;
                    break;
                }
                Err(BackendError::Refused) => count(&state.counters.received_malformed, 1),
                Err(BackendError::Gone(error)) => {
                    state.log_gone(&error);
                    moved = Moved::Gone;
                    break;
                }
            }
            if moved == Moved::Nothing {
                moved = Moved::Some;
            }
        }
        self.queue.notify()?;
        Ok(moved)
    }

    /// Whether the rate limit lets nothing through now.
    fn is_held(&mut self, limiter: &Option<Limiter>, state: &State) -> bool {
        let before = self.held_until.is_some();
        self.held_until = limiter.as_ref().and_then(|limiter| limiter.held_until(Instant::now()));
        if self.held_until.is_some() && !before {
            count(&state.counters.throttled, 1);
        }
        self.held_until.is_some()
    }

    /// Takes buffers from the driver. False if there are none at all.
    fn gather(&mut self, state: &State) -> Result<bool, DeviceError> {
        let (mut room, mut segments) = (0usize, 0usize);
        for chain in &self.chains {
            room = room.saturating_add(chain.writable_len());
            segments = segments.saturating_add(chain.writable().len());
        }
        let target = if self.mergeable { self.target } else { 1 };
        while room < target && segments < MOST_SEGMENTS {
            let Some((len, pieces)) = self.take()? else { break };
            room = room.saturating_add(len);
            segments = segments.saturating_add(pieces);
        }
        if self.chains.is_empty() {
            self.starve(state);
        }
        Ok(!self.chains.is_empty())
    }

    /// Takes one more buffer from the driver: its length and pieces.
    fn take(&mut self) -> Result<Option<(usize, usize)>, DeviceError> {
        let Some(chain) = self.queue.pop()? else { return Ok(None) };
        let (len, pieces) = (chain.writable_len(), chain.writable().len());
        if len < HEADER_LEN {
            return Err(DeviceError::Driver(Box::new(NoHeader { len })));
        }
        self.paused = false;
        self.chains.push_back(chain);
        Ok(Some((len, pieces)))
    }

    fn starve(&mut self, state: &State) {
        self.starved = true;
        if !std::mem::replace(&mut self.paused, true) {
            count(&state.counters.receive_paused, 1);
        }
    }

    fn receive(
        &mut self,
        backend: &mut dyn NetBackend,
        link: bool,
    ) -> Result<Arrived, BackendError> {
        let chains = match (link, self.mergeable) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => self.direct_chains(),
        };
        let mut room = Room::new(&self.chains, chains, &mut self.spill, self.offloads);
        backend.receive(&mut room)?;
        let (len, direct) = room.filled();
        // Nothing was put: then there was nothing.
        if len == 0 { Err(BackendError::WouldBlock) } else { Ok(Arrived { len, direct }) }
    }

    /// How many chains a call to the kernel can take: at least one, which is no longer than the queue.
    fn direct_chains(&self) -> usize {
        let pieces = self.chains.iter().scan(0usize, |sum, chain| {
            *sum = sum.saturating_add(chain.writable().len());
            Some(*sum)
        });
        pieces.take_while(|&sum| sum <= MOST_DIRECT_SEGMENTS).count().max(1)
    }

    /// A frame is there: it goes to the driver, or is dropped.
    fn arrived(
        &mut self,
        frame: Arrived,
        link: bool,
        limiter: &mut Option<Limiter>,
        filter: &Filter,
        state: &State,
    ) -> Result<(), DeviceError> {
        let Arrived { len, direct } = frame;
        let counters = &state.counters;
        if let Some(limiter) = limiter {
            limiter.charge(Cost::one(len.saturating_sub(HEADER_LEN)), Instant::now());
        }
        if len < HEADER_LEN.saturating_add(MIN_FRAME_LEN) {
            count(&counters.received_malformed, 1);
            return Ok(());
        }
        if !link {
            count(&counters.received_without_link, 1);
            return Ok(());
        }
        let Start { flags, kind, destination } = self.start(direct)?;
        if !header::is_allowed(flags, kind, self.offloads) {
            // A frame that a tap held while the driver changed its mind.
            count(&counters.received_malformed, 1);
        } else if !filter.accepts(destination) {
            count(&counters.received_filtered, 1);
        } else if (!self.mergeable && len > direct) || !self.is_within(len, self.lengths.longest) {
            count(&counters.received_too_long, 1);
        } else {
            if flags != 0 && !self.offloads.checksum {
                // Nothing may be said of the checksum then (5.1.6.4.1), though a tap does.
                run::write_at(&self.chains, 0, &[0])?;
            }
            self.expect(len);
            self.deliver(frame, state)?;
        }
        Ok(())
    }

    /// Whether a header and frame of so many bytes is no longer than `limit`, or of any length because the
    /// driver takes what is still to be cut up.
    fn is_within(&self, len: usize, limit: usize) -> bool {
        self.offloads.segments() || len.saturating_sub(HEADER_LEN) <= limit
    }

    /// Whether a frame of so many bytes may wait for buffers. In a pause there seem to be none.
    fn may_wait(&self, len: usize) -> bool {
        self.is_within(len, self.lengths.promised) || self.queue.is_held()
    }

    /// Learns from the length of a frame how much room the next one may need.
    fn expect(&mut self, len: usize) {
        if len > USUAL {
            (self.target, self.quiet) = (SPILL_LEN, 0);
        } else {
            self.quiet = self.quiet.saturating_add(1);
            if self.quiet >= QUIET {
                self.target = USUAL;
            }
        }
    }

    /// Gives a frame to the driver, or drops it if it can never fit. False if it has to wait for buffers.
    fn deliver(&mut self, frame: Arrived, state: &State) -> Result<bool, DeviceError> {
        let Arrived { len, direct } = frame;
        let (mut room, mut count_of) = (0usize, 0usize);
        while room < len {
            let next = self.chains.get(count_of).map(Chain::writable_len);
            let next = match next {
                Some(len) => len,
                None => match self.take()? {
                    Some((len, _)) => len,
                    // The driver may wait with fewer buffers for what it must take, and all are taken.
                    None if self.has_all() || !self.may_wait(len) => {
                        self.waiting = None;
                        count(&state.counters.received_too_long, 1);
                        return Ok(true);
                    }
                    None => {
                        self.waiting = Some(frame);
                        self.starve(state);
                        return Ok(false);
                    }
                },
            };
            room = room.saturating_add(next);
            count_of = count_of.saturating_add(1);
        }
        self.waiting = None;
        self.complete(len, direct, count_of)?;
        // In order, all at once: the driver takes them for one frame.
        let mut left = len;
        let parts = self.chains.drain(..count_of).map(|chain| {
            let part = chain.writable_len().min(left);
            left = left.saturating_sub(part);
            (chain, part)
        });
        self.queue.push_all(parts)?;
        count(&state.counters.received_frames, 1);
        let bytes = u64::try_from(len.saturating_sub(HEADER_LEN)).unwrap_or(0);
        count(&state.counters.received_bytes, bytes);
        Ok(true)
    }

    /// Whether the driver has no descriptors left for another buffer as large as the last one: without
    /// getting some back it cannot offer more.
    fn has_all(&self) -> bool {
        let taken = self.chains.iter().map(Chain::descriptors);
        let last = self.chains.back().map_or(0, Chain::descriptors);
        taken.fold(last, u16::saturating_add) > self.queue.size()
    }

    /// Writes what is missing of a frame in the first `chains`: what lies in the spill, and the header's
    /// number of chains.
    fn complete(&self, len: usize, direct: usize, chains: usize) -> Result<(), DeviceError> {
        let spilled = len.saturating_sub(direct);
        if spilled > 0 {
            run::write_at(&self.chains, direct, self.spill.get(..spilled).unwrap_or_default())?;
        }
        let number = if self.mergeable { u16::try_from(chains).unwrap_or(1) } else { 1 };
        run::write_at(&self.chains, NUM_BUFFERS, &number.to_le_bytes())?;
        Ok(())
    }

    /// The start of the frame that was received last, and fills the first `direct` bytes of the chains.
    fn start(&self, direct: usize) -> Result<Start, DeviceError> {
        let mut bytes = [0; Start::LEN];
        let in_chains = direct.min(bytes.len());
        let (here, behind) = bytes.split_at_mut(in_chains);
        run::read_at(&self.chains, 0, here)?;
        // Without a frame that is longer than the chains, there is nothing behind.
        for (to, from) in behind.iter_mut().zip(&self.spill) {
            *to = *from;
        }
        let [flags, kind, _, _, _, _, _, _, _, _, _, _, destination @ ..] = bytes;
        Ok(Start { flags, kind, destination })
    }
}

/// The start of a frame, with its header.
struct Start {
    flags: u8,
    kind: u8,
    destination: Address,
}

impl Start {
    const LEN: usize = HEADER_LEN + size_of::<Address>();
}
