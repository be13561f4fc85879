//! The life of a disk between `DRIVER_OK` and reset: queues on one side, an engine on the other.

use std::time::{Duration, Instant};

use virtio_bindings::virtio_blk::{VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_FLUSH};

use super::super::coalesce::Coalescing;
use super::super::token_bucket::Limiter;
use super::super::{Chain, DeviceError, Queue, Session};
use super::requests::{Done, Requests};
use super::state::State;
use super::stats::count;
use super::{Block, has};

/// The most requests in flight at once.
const MAX_IN_FLIGHT: u16 = 1024;
/// How many requests start before the driver may hear of those that have ended.
const BATCH: u32 = 32;

/// Serves the disk until the session ends.
pub(super) fn run(block: &mut Block, session: &mut Session) -> Result<(), DeviceError> {
    let features = session.features();
    let queues = session.take_queues();
    let state = block.disk.state.clone();
    state.set_waker(session.waker());
    let cache = Cache::negotiated(features);
    if matches!(cache, Cache::Choice { flushes: false }) {
        state.set_writeback(false);
    }
    let Block { disk, limiter, .. } = block;
    let slots = queues.iter().fold(0u16, |sum, queue| sum.saturating_add(queue.size()));
    let requests = disk.requests(features, slots.min(MAX_IN_FLIGHT))?;
    let (turn, pushed, parked, state) = (0, 0, None, &*state);
    let coalescing = Coalescing::new();
    let mut worker = Worker {
        session,
        queues,
        turn,
        pushed,
        coalescing,
        requests,
        limiter,
        parked,
        cache,
        state,
    };
    let result = worker.serve();
    // Whatever happened: no operation may touch guest memory after the session.
    let drained = worker.requests.drain();
    state.set_writeback(true);
    result.and(drained.map_err(DeviceError::from))
}

/// Whether complete writes may stay in a cache until a flush (virtio 1.2, section 5.2.6.2).
#[derive(Debug, Clone, Copy)]
enum Cache {
    WriteThrough,
    WriteBack,
    /// The driver chooses by `writeback` in the configuration space, where it begins as false if there
    /// are no flushes.
    Choice {
        flushes: bool,
    },
}

impl Cache {
    fn negotiated(features: u64) -> Self {
        let flushes = has(features, VIRTIO_BLK_F_FLUSH);
        if has(features, VIRTIO_BLK_F_CONFIG_WCE) {
            Self::Choice { flushes }
        } else if flushes {
            Self::WriteBack
        } else {
            Self::WriteThrough
        }
    }

    /// Whether a write that starts now is complete only when it is durable.
    fn write_through(self, state: &State) -> bool {
        match self {
            Self::WriteThrough => true,
            Self::WriteBack => false,
            Self::Choice { .. } => !state.writeback(),
        }
    }
}

struct Worker<'a> {
    session: &'a mut Session,
    queues: Vec<Queue>,
    /// Which queue is looked at first next time.
    turn: usize,
    /// The queues that were given something back which the driver was not told of, as a mask.
    pushed: u16,
    coalescing: Coalescing,
    requests: Requests<'a>,
    limiter: &'a mut Option<Limiter>,
    parked: Option<Parked>,
    cache: Cache,
    state: &'a State,
}

/// A request that the rate limit holds back. No other one starts before it.
struct Parked {
    chain: Chain,
    until: Instant,
}

impl Worker<'_> {
    fn serve(&mut self) -> Result<(), DeviceError> {
        loop {
            if self.state.take_changed() {
                self.session.config_changed()?;
            }
            let worked = self.work()?;
            if self.session.is_stopping() {
                return Ok(());
            }
            let open = self.parked.is_none() && self.requests.has_room();
            // Where the disk itself is what takes time, the driver hears of each answer at once: it may
            // have something for the disk to do meanwhile.
            let hold = if open && self.requests.is_idle() && !self.session.is_pausing() {
                self.coalescing.wait(worked, Instant::now())
            } else {
                None
            };
            // Without notifications the driver offers more sooner: they are asked for when it is told.
            if hold.is_none() {
                self.notify()?;
                if open && self.more_came()? {
                    continue;
                }
            }
            if !self.wait(hold)? {
                return Ok(());
            }
        }
    }

    /// Waits until there may be something to do, or for `hold` at most. `false`: the session ends.
    fn wait(&mut self, hold: Option<Duration>) -> Result<bool, DeviceError> {
        self.session.set_busy(!self.requests.is_idle());
        let now = Instant::now();
        let parked = self.parked.as_ref().map(|parked| parked.until.saturating_duration_since(now));
        let completions = self.requests.engine().completion_fd();
        Ok(self.session.wait(completions.as_slice(), hold.or(parked))?)
    }

    /// Starts requests and gives them back for as long as there are any. Whether there were any.
    fn work(&mut self) -> Result<bool, DeviceError> {
        for queue in &mut self.queues {
            queue.disable_notifications()?;
        }
        let mut worked = false;
        loop {
            let started = self.start_batch()?;
            self.requests.submit()?;
            let ended = self.give_back()?;
            let now = Instant::now();
            self.coalescing.looked(started, now);
            if self.coalescing.is_due(now) {
                self.notify()?;
            }
            if self.session.is_stopping() || started == 0 && !ended {
                return Ok(worked);
            }
            worked = true;
        }
    }

    /// Asks for notifications again. Whether there is something to do already.
    fn more_came(&mut self) -> Result<bool, DeviceError> {
        let mut more = false;
        for queue in &mut self.queues {
            more |= queue.enable_notifications()?;
        }
        Ok(more)
    }

    /// Starts requests and gives each back as soon as it ends: a driver that is at it anyway can go on
    /// with it at once, the interrupt comes later. How many started.
    fn start_batch(&mut self) -> Result<u32, DeviceError> {
        for started in 0..BATCH {
            if !self.requests.has_room() || !self.start_one()? {
                return Ok(started);
            }
            self.give_back()?;
        }
        Ok(BATCH)
    }

    /// `Ok(false)`: there is no request, or the rate limit holds it back.
    fn start_one(&mut self) -> Result<bool, DeviceError> {
        let (chain, new) = match self.parked.take() {
            Some(parked) => (parked.chain, false),
            None => match self.pop()? {
                Some(chain) => (chain, true),
                None => return Ok(false),
            },
        };
        let write_through = self.cache.write_through(self.state);
        let Some(limiter) = self.limiter else {
            self.requests.start(chain, write_through)?;
            return Ok(true);
        };
        let now = Instant::now();
        if let Some(until) = limiter.held_until(now) {
            count(&self.state.counters.throttled, u64::from(new));
            self.parked = Some(Parked { chain, until });
            return Ok(false);
        }
        // By what was begun: the driver could still change what the chain holds.
        limiter.charge(self.requests.start(chain, write_through)?, now);
        Ok(true)
    }

    /// The next request, of each queue in turn.
    fn pop(&mut self) -> Result<Option<Chain>, DeviceError> {
        self.turn = self.turn.checked_rem(self.queues.len()).unwrap_or(0);
        let (before, after) = self.queues.split_at_mut_checked(self.turn).unwrap_or_default();
        for queue in after.iter_mut().chain(before) {
            self.turn = self.turn.saturating_add(1);
            if let Some(chain) = queue.pop()? {
                return Ok(Some(chain));
            }
        }
        Ok(None)
    }

    /// Gives all requests that have ended back to the driver. Whether anything went on.
    fn give_back(&mut self) -> Result<bool, DeviceError> {
        let mut went_on = false;
        // One large request is many operations: a reset does not wait for them all.
        while !self.session.is_stopping() && self.requests.advance()? {
            went_on = true;
        }
        while let Some(Done { chain, written }) = self.requests.next_done() {
            went_on = true;
            self.pushed |= mask(chain.queue);
            self.coalescing.answered();
            if let Some(queue) = self.queues.iter_mut().find(|queue| queue.index() == chain.queue) {
                queue.push(chain, written)?;
            }
        }
        Ok(went_on)
    }

    /// Tells the driver of all that was given back, with one interrupt at most for each queue.
    fn notify(&mut self) -> Result<(), DeviceError> {
        self.coalescing.told();
        let pushed = std::mem::take(&mut self.pushed);
        for queue in self.queues.iter_mut().filter(|queue| pushed & mask(queue.index()) != 0) {
            queue.notify()?;
        }
        Ok(())
    }
}

/// The bit of a queue; there are at most 16.
fn mask(queue: u16) -> u16 {
    1u16.checked_shl(queue.into()).unwrap_or(0)
}
