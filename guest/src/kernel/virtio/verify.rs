//! `test=disk`: requests at random, and every byte that comes back is known.

use super::blk::{
    DISCARD, Disk, FLUSH, Kind, MAX_DEPTH, READ_ONLY, Request, SECTOR, STATUS_IO_ERROR, STATUS_OK,
    WRITE_ZEROES,
};
use super::content::{self, Random};
use super::dma::{Arena, Memory};
use super::whole::FILLED;
use crate::bootinfo::BootInfo;
use crate::cmdline::Cmdline;
use crate::exit_code::{DISK_CONTENT, DISK_ERROR, DISK_READ_ONLY};
use crate::{TestResult, clock, uart};

/// The largest request.
pub(crate) const MAX_SECTORS: u64 = 64;
const DEFAULT_REQUESTS: u64 = 1000;

/// What is known of a sector: the write that its content is from, or one of these.
const UNKNOWN: u32 = 0;
const ZEROES: u32 = 1;
const FIRST_WRITE: u32 = FILLED + 1;

pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut arena = Arena::new(boot)?;
    let mut disk = Disk::open(cmdline, &mut arena, MAX_SECTORS * SECTOR)?;
    disk.start()?;
    let mut job = Job::new(cmdline, &mut arena, &disk)?;
    job.refused = cmdline.has(b"readonly");
    if job.refused != disk.has(READ_ONLY) {
        return Err(DISK_READ_ONLY);
    }
    let requests = cmdline.number(b"requests")?.unwrap_or(DEFAULT_REQUESTS);
    let start = clock::now();
    job.run(&mut disk, requests)?;
    let ticks = clock::now() - start;
    uart::key_value(b"requests", requests);
    uart::key_value(b"sectors", job.sectors);
    report(cmdline, &disk, ticks)
}

/// Prints what a job has taken.
pub(crate) fn report(cmdline: &Cmdline, disk: &Disk, ticks: u64) -> TestResult {
    uart::key_value(b"notifications", disk.notifications);
    uart::key_value(b"interrupts", disk.waiter.interrupts());
    let khz = clock::tsc_khz(cmdline)?;
    uart::key_value(b"microseconds", (ticks * 1000).checked_div(khz).unwrap_or(0));
    Ok(())
}

/// Requests to a disk, and what it must hold after them.
pub(crate) struct Job {
    seed: u64,
    random: Random,
    /// For each sector, what is known of it.
    known: Memory,
    sectors: u64,
    next_write: u32,
    tasks: [Option<Task>; MAX_DEPTH],
    /// The disk refuses all changes.
    refused: bool,
}

#[derive(Clone, Copy)]
struct Task {
    request: Request,
    /// What will be known of its sectors if it changes them.
    then: u32,
}

impl Job {
    /// For the whole disk, or as much of it as there is memory to keep account of. Nothing is known of
    /// it yet, unless the command line says `filled`.
    pub(crate) fn new(cmdline: &Cmdline, arena: &mut Arena, disk: &Disk) -> Result<Self, u8> {
        let sectors = disk.capacity().min(arena.left() / 4);
        let known = arena.take(sectors * 4)?;
        let seed = cmdline.number(b"seed")?.unwrap_or(0);
        let mut job = Self {
            seed,
            random: Random::new(seed),
            known,
            sectors,
            next_write: FIRST_WRITE,
            tasks: [None; MAX_DEPTH],
            refused: false,
        };
        if cmdline.has(b"filled") {
            job.learn(0, sectors, FILLED);
        }
        Ok(job)
    }

    /// Nothing is known of the disk any more, and nothing in flight.
    pub(crate) fn forget(&mut self) {
        self.known.fill(0);
        self.tasks.fill(None);
    }

    /// Carries out so many requests, as many at a time as the disk has slots, and then reads back
    /// every sector that is known.
    pub(crate) fn run(&mut self, disk: &mut Disk, requests: u64) -> TestResult {
        let mut left = requests;
        let mut in_flight = 0;
        while left > 0 || in_flight > 0 {
            for slot in 0..disk.depth {
                if left == 0 {
                    break;
                }
                if self.tasks[slot].is_none() {
                    // If there is no room beside the others, then later.
                    let Some(task) = self.next_task(disk) else { break };
                    self.begin(disk, slot, task);
                    left -= 1;
                    in_flight += 1;
                }
            }
            disk.kick();
            disk.wait()?;
            while let Some((slot, status)) = disk.take_ended()? {
                self.end(disk, slot, status)?;
                in_flight -= 1;
            }
        }
        self.read_back(disk)
    }

    /// A request whose outcome does not depend on the others in flight.
    fn next_task(&mut self, disk: &Disk) -> Option<Task> {
        let kind = match self.random.below(32) {
            0 if disk.has(DISCARD) => Kind::Discard,
            1 | 2 if disk.has(WRITE_ZEROES) => Kind::WriteZeroes,
            3 if disk.has(FLUSH) => Kind::Flush,
            4..=16 => Kind::Read,
            _ => Kind::Write,
        };
        for _ in 0..16 {
            let sectors = 1 + self.random.below(MAX_SECTORS.min(self.sectors));
            let sector = self.random.below(self.sectors - sectors + 1);
            let request = Request { kind, sector, sectors };
            let free = |task: &Task| !conflict(&task.request, &request);
            if kind == Kind::Flush {
                return Some(Task { request: Request { sectors: 0, ..request }, then: UNKNOWN });
            } else if self.tasks.iter().flatten().all(free) {
                let then = match kind {
                    Kind::Write => self.next_write,
                    Kind::WriteZeroes => ZEROES,
                    _ => UNKNOWN,
                };
                self.next_write += u32::from(kind == Kind::Write);
                return Some(Task { request, then });
            }
        }
        None
    }

    fn begin(&mut self, disk: &mut Disk, slot: usize, task: Task) {
        let Request { kind, sector, sectors } = task.request;
        let data = disk.data(slot, sectors);
        match kind {
            Kind::Write => {
                for index in 0..sectors {
                    let place = data.part(index * SECTOR, SECTOR);
                    content::write(place, self.seed, sector + index, task.then);
                }
            }
            // So that what was there before cannot pass for what was read.
            Kind::Read => data.fill(0x55),
            _ => {}
        }
        disk.submit(slot, task.request, Some(&mut self.random));
        self.tasks[slot] = Some(task);
    }

    fn end(&mut self, disk: &Disk, slot: usize, status: u8) -> TestResult {
        let Some(Task { request, then }) = self.tasks[slot].take() else { return Err(DISK_ERROR) };
        let Request { kind, sector, sectors } = request;
        let change = matches!(kind, Kind::Write | Kind::WriteZeroes | Kind::Discard);
        match status {
            STATUS_IO_ERROR if self.refused && change => return Ok(()),
            _ if self.refused && change => return Err(DISK_READ_ONLY),
            STATUS_OK => {}
            _ => {
                uart::key_value(b"failed_request_kind", kind as u64);
                uart::key_value(b"status", u64::from(status));
                return Err(DISK_ERROR);
            }
        }
        if change {
            self.learn(sector, sectors, then);
        } else if kind == Kind::Read {
            self.check(disk.data(slot, sectors), sector)?;
        }
        Ok(())
    }

    fn read_back(&self, disk: &mut Disk) -> TestResult {
        let mut sector = 0;
        while sector < self.sectors {
            let sectors = MAX_SECTORS.min(self.sectors - sector);
            if (sector..sector + sectors).any(|sector| self.known(sector) != UNKNOWN) {
                disk.request(Kind::Read, sector, sectors)?;
                self.check(disk.data(0, sectors), sector)?;
            }
            sector += sectors;
        }
        Ok(())
    }

    /// That sectors read hold what they must.
    fn check(&self, data: Memory, first: u64) -> TestResult {
        for (sector, offset) in (first..).zip((0..data.length()).step_by(SECTOR as usize)) {
            let place = data.part(offset, SECTOR);
            let known = self.known(sector);
            let good = match known {
                UNKNOWN => true,
                ZEROES => content::is_zero(place),
                _ => content::is(place, self.seed, sector, known),
            };
            if !good {
                uart::key_value(b"wrong_sector", sector);
                uart::key_value(b"expected_write", u64::from(known));
                uart::key_value(b"found_sector", place.read(0));
                uart::key_value(b"found_write", place.read(8));
                return Err(DISK_CONTENT);
            }
        }
        Ok(())
    }

    fn known(&self, sector: u64) -> u32 {
        self.known.read(sector * 4)
    }

    fn learn(&mut self, sector: u64, sectors: u64, known: u32) {
        (sector..sector + sectors).for_each(|sector| self.known.write(sector * 4, known));
    }
}

/// Whether the outcome of one depends on which is first.
fn conflict(a: &Request, b: &Request) -> bool {
    let overlap = a.sector < b.sector + b.sectors && b.sector < a.sector + a.sectors;
    overlap && !(a.kind == Kind::Read && b.kind == Kind::Read)
}
