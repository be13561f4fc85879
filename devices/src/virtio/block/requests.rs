//! The requests in progress: from a chain of the driver to its status byte.
//!
//! No file, no thread, no queue: chains come in, operations go to an [`Engine`], chains come out.

use std::collections::VecDeque;
use std::io;

use thiserror::Error;

use super::super::token_bucket::Cost;
use super::super::{AccessError, Chain, DeviceError};
use super::disk::SERIAL_LEN;
use super::engine::{Completion, Engine, Operation};
use super::request::{Extent, HEADER_LEN, RANGE_LEN, Range, Request, Rules, SECTOR, Status};
use super::state::{State, capacity};
use super::stats::count;
use super::task::{Move, Task, Work};

/// How many bytes operations may be moving before no further request starts. A reset waits for these,
/// and the disk may be slow.
const MAX_MOVING: usize = 32 << 20;
/// A driver made a request that has no room for its status (virtio 1.2, section 5.2.6), so nobody can
/// be told what is wrong with it.
#[derive(Debug, Error)]
#[error("a request to a disk has no room for its status")]
struct NoStatus;

/// A request that has ended, to be pushed.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) chain: Chain,
    pub(super) written: usize,
}

/// What holds for a whole session.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) read_only: bool,
    pub(super) discard: bool,
    pub(super) write_zeroes: bool,
    pub(super) serial: [u8; SERIAL_LEN],
}

#[derive(Debug)]
pub(super) struct Requests<'a> {
    engine: Box<dyn Engine>,
    settings: Settings,
    state: &'a State,
    /// By tag. The tag after the last one belongs to the sync in progress.
    tasks: Vec<Option<Task>>,
    free: Vec<u16>,
    /// The bytes of one operation of each task.
    moving: usize,
    done: VecDeque<Done>,
    /// What the sync in progress is for.
    syncing: Vec<u16>,
    /// What the next one is for. It came too late for the one in progress, which need not cover writes
    /// that ended after it had begun.
    waiting: Vec<u16>,
}

impl<'a> Requests<'a> {
    /// For at most `limit` requests at once; `engine` has that many tags and one more.
    pub(super) fn new(
        engine: Box<dyn Engine>,
        limit: u16,
        settings: Settings,
        state: &'a State,
    ) -> Self {
        let mut tasks = Vec::new();
        tasks.resize_with(limit.into(), || None);
        let free = (0..limit).rev().collect();
        let (moving, done, syncing, waiting) = Default::default();
        Self { engine, settings, state, tasks, free, moving, done, syncing, waiting }
    }

    /// Whether another request can start.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty() && self.moving < MAX_MOVING
    }

    /// Whether nothing is in progress.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.tasks.len() && self.done.is_empty()
    }

    /// Begins the request in `chain`; it comes back from [`next_done`](Self::next_done).
    /// Returns what it counts for a rate limit.
    ///
    /// # Errors
    /// The driver must reset the device: the request has no room for its status.
    pub(super) fn start(&mut self, chain: Chain, write_through: bool) -> Result<Cost, DeviceError> {
        const SMALL: Cost = Cost::one(0);
        if chain.writable_len() == 0 {
            return Err(DeviceError::Driver(Box::new(NoStatus)));
        }
        let work = match self.work(&chain) {
            Ok(Some(work)) => work,
            Ok(None) => {
                let written = room(&chain).min(SERIAL_LEN);
                chain.write_at(0, self.settings.serial.get(..written).unwrap_or_default())?;
                return self.end(chain, written, Status::Ok).map(|()| SMALL);
            }
            Err(Refusal::Status(status)) => return self.end(chain, 0, status).map(|()| SMALL),
            Err(Refusal::Access(error)) => return Err(error.into()),
        };
        let Some(tag) = self.free.pop() else {
            // Never, as `has_room` was asked.
            return self.end(chain, 0, Status::IoError).map(|()| SMALL);
        };
        let cost = work.cost();
        let task = Task { chain, work, write_through };
        self.moving = self.moving.saturating_add(task.weight());
        self.continue_with(tag, task)?;
        Ok(cost)
    }

    /// Starts all that was begun.
    pub(super) fn submit(&mut self) -> io::Result<()> {
        if self.syncing.is_empty() && !self.waiting.is_empty() {
            std::mem::swap(&mut self.syncing, &mut self.waiting);
            self.engine.begin(self.sync_tag(), Operation::Sync);
        }
        self.engine.submit()
    }

    /// Takes in one operation that has ended. `Ok(false)`: there is none.
    pub(super) fn advance(&mut self) -> Result<bool, DeviceError> {
        let Some(Completion { tag, result }) = self.engine.complete() else { return Ok(false) };
        if tag == self.sync_tag() {
            self.synced(&result)?;
        } else if let Some(task) = self.tasks.get_mut(usize::from(tag)).and_then(Option::take) {
            self.moved(tag, task, result)?;
        }
        Ok(true)
    }

    /// The next request that has ended.
    pub(super) fn next_done(&mut self) -> Option<Done> {
        self.done.pop_front()
    }

    pub(super) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// Waits until no operation can touch guest memory any more.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        self.engine.drain()
    }

    fn sync_tag(&self) -> u16 {
        u16::try_from(self.tasks.len()).unwrap_or(u16::MAX)
    }

    fn rules(&self) -> Rules {
        let Settings { read_only, discard, write_zeroes, .. } = self.settings;
        Rules { capacity: capacity(self.state.size()), read_only, discard, write_zeroes }
    }

    /// What is to be done for `chain`; `None`: only to tell the serial number.
    fn work(&self, chain: &Chain) -> Result<Option<Work>, Refusal> {
        let mut header = [0; HEADER_LEN];
        let output = chain.readable_len().checked_sub(HEADER_LEN).ok_or(Status::IoError)?;
        let input = room(chain);
        chain.read_at(0, &mut header)?;
        let rules = self.rules();
        let bytes = |count| u64::try_from(count).unwrap_or(u64::MAX);
        let request = rules.check(header, bytes(output), bytes(input))?;
        let moves = |extent: Extent, len| Move { offset: extent.offset, len, moved: 0 };
        Ok(Some(match request {
            Request::Read(extent) => Work::Read(moves(extent, input)),
            Request::Write(extent) => Work::Write(moves(extent, output)),
            Request::Flush => Work::Flush,
            Request::GetId => return Ok(None),
            Request::Discard(count) => Work::Discard(ranges(&rules, &request, chain, count)?),
            Request::WriteZeroes(count) => {
                Work::WriteZeroes(ranges(&rules, &request, chain, count)?)
            }
        }))
    }

    /// Begins the next operation of `task`, or ends it.
    fn continue_with(&mut self, tag: u16, task: Task) -> Result<(), DeviceError> {
        let Some(operation) = task.next_operation() else {
            if task.must_sync() {
                self.waiting.push(tag);
                self.keep(tag, task);
                return Ok(());
            }
            return self.succeed(tag, task);
        };
        self.engine.begin(tag, operation);
        self.keep(tag, task);
        Ok(())
    }

    fn keep(&mut self, tag: u16, task: Task) {
        if let Some(slot) = self.tasks.get_mut(usize::from(tag)) {
            *slot = Some(task);
        }
    }

    /// An operation of `task` has ended.
    fn moved(
        &mut self,
        tag: u16,
        mut task: Task,
        result: io::Result<usize>,
    ) -> Result<(), DeviceError> {
        let moved = match result {
            Ok(0) if task.work.is_read() => self.read_past_end(&task)?,
            Ok(0) if task.work.is_write() => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                return self.continue_with(tag, task);
            }
            result => result,
        };
        match moved {
            Ok(count) => {
                task.advance(count);
                self.continue_with(tag, task)
            }
            Err(error) => self.fail(tag, task, &error),
        }
    }

    /// A sync has ended, and with it every request that waited for it.
    fn synced(&mut self, result: &io::Result<usize>) -> Result<(), DeviceError> {
        let mut tags = std::mem::take(&mut self.syncing);
        if result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::Interrupted) {
            self.waiting.append(&mut tags);
        }
        for tag in tags.drain(..) {
            let Some(task) = self.tasks.get_mut(usize::from(tag)).and_then(Option::take) else {
                continue;
            };
            match result {
                Ok(_) => self.succeed(tag, task)?,
                Err(error) => self.fail(tag, task, error)?,
            }
        }
        self.syncing = tags; // Its allocation.
        Ok(())
    }

    /// A read met the end of the storage. That is right behind the last byte of a disk that ends within
    /// a sector: zeroes are read there. Elsewhere, the file is shorter than it was.
    fn read_past_end(&self, task: &Task) -> Result<io::Result<usize>, AccessError> {
        let Work::Read(Move { offset, len, moved }) = task.work else { return Ok(Ok(0)) };
        let position = offset.saturating_add(u64::try_from(moved).unwrap_or(u64::MAX));
        let sector = usize::try_from(SECTOR).unwrap_or(512);
        let rest = len.saturating_sub(moved);
        if position != self.state.size() || rest >= sector {
            return Ok(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        let zeroes = [0; 512];
        task.chain.write_at(moved, zeroes.get(..rest).unwrap_or_default())?;
        Ok(Ok(rest))
    }

    /// No operation of `task` is in flight any more.
    fn release(&mut self, tag: u16, task: &Task) {
        self.free.push(tag);
        self.moving = self.moving.saturating_sub(task.weight());
    }

    fn succeed(&mut self, tag: u16, task: Task) -> Result<(), DeviceError> {
        self.release(tag, &task);
        let counters = &self.state.counters;
        let bytes = |len| u64::try_from(len).unwrap_or(0);
        let filled = match task.work {
            Work::Read(Move { len, .. }) => {
                count(&counters.reads, 1);
                count(&counters.read_bytes, bytes(len));
                len
            }
            Work::Write(Move { len, .. }) => {
                count(&counters.writes, 1);
                count(&counters.written_bytes, bytes(len));
                0
            }
            Work::Flush => {
                count(&counters.flushes, 1);
                0
            }
            Work::Discard(_) | Work::WriteZeroes(_) => {
                count(&counters.discards, 1);
                0
            }
        };
        self.end(task.chain, filled, Status::Ok)
    }

    fn fail(&mut self, tag: u16, task: Task, error: &io::Error) -> Result<(), DeviceError> {
        if self.state.is_first_failure() {
            let name = &self.state.name;
            log::warn!("the disk {name} fails, its guest sees I/O errors: {error}");
        }
        self.release(tag, &task);
        let filled = if let Work::Read(Move { moved, .. }) = task.work { moved } else { 0 };
        self.end(task.chain, filled, Status::IoError)
    }

    /// Writes the status, the last byte. `filled`: how many bytes of the driver's room hold data.
    fn end(&mut self, chain: Chain, filled: usize, status: Status) -> Result<(), DeviceError> {
        if status != Status::Ok {
            count(&self.state.counters.errors, 1);
        }
        let room = room(&chain);
        chain.write_at(room, &[status as u8])?;
        // What is said to be written counts from the start, without a gap (virtio 1.2, 2.7.8.2).
        let written = if filled == room { chain.writable_len() } else { filled };
        self.done.push_back(Done { chain, written });
        Ok(())
    }
}

/// Bytes of room for data before the status.
fn room(chain: &Chain) -> usize {
    chain.writable_len().saturating_sub(1)
}

/// The ranges of a request that has `count` of them, to be done from the last one to the first. Empty
/// ones are left out.
fn ranges(
    rules: &Rules,
    request: &Request,
    chain: &Chain,
    count: usize,
) -> Result<Vec<Range>, Refusal> {
    let mut ranges = Vec::with_capacity(count);
    for index in 0..count {
        let mut bytes = [0; RANGE_LEN];
        chain.read_at(HEADER_LEN.saturating_add(index.saturating_mul(RANGE_LEN)), &mut bytes)?;
        let range = rules.range(request, bytes)?;
        if range.extent.len > 0 {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

/// Why a request does not begin.
enum Refusal {
    Status(Status),
    Access(AccessError),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl From<AccessError> for Refusal {
    fn from(error: AccessError) -> Self {
        Self::Access(error)
    }
}
