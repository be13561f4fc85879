//! `test=iops`: how many requests a second.

use super::blk::{Disk, Kind, Request, SECTOR, STATUS_OK};
use super::content::Random;
use super::dma::Arena;
use super::verify::report;
use crate::bootinfo::BootInfo;
use crate::cmdline::Cmdline;
use crate::exit_code::{BAD_COMMAND_LINE, DISK_ERROR};
use crate::{TestResult, clock, uart};

const DEFAULT_REQUESTS: u64 = 10_000;
const MOST_BYTES: u64 = 1 << 20;

/// Reads or, with `write`, writes `bytes=` (4096) at random or, with `sequential`, one after the other.
pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let bytes = cmdline.number(b"bytes")?.unwrap_or(4096);
    let requests = cmdline.number(b"requests")?.unwrap_or(DEFAULT_REQUESTS);
    let mut disk = Disk::open(cmdline, &mut Arena::new(boot)?, bytes)?;
    let sectors = bytes / SECTOR;
    let places = disk.capacity().checked_div(sectors).unwrap_or(0);
    if bytes % SECTOR != 0 || bytes > MOST_BYTES || places == 0 {
        return Err(BAD_COMMAND_LINE);
    }
    disk.start()?;

    let kind = if cmdline.has(b"write") { Kind::Write } else { Kind::Read };
    let sequential = cmdline.has(b"sequential");
    let mut random = Random::new(cmdline.number(b"seed")?.unwrap_or(0));
    let mut begun = 0;
    let mut begin = |disk: &mut Disk, slot| {
        let place = if sequential { begun % places } else { random.below(places) };
        begun += 1;
        disk.submit(slot, Request { kind, sector: place * sectors, sectors }, None);
    };
    let depth = (disk.depth as u64).min(requests);
    let start = clock::now();
    (0..depth as usize).for_each(|slot| begin(&mut disk, slot));
    let mut ended = 0;
    while ended < requests {
        disk.kick();
        disk.wait()?;
        while let Some((slot, status)) = disk.take_ended()? {
            if status != STATUS_OK {
                return Err(DISK_ERROR);
            }
            ended += 1;
            if ended + depth <= requests {
                begin(&mut disk, slot);
            }
        }
    }
    let ticks = clock::now() - start;

    uart::key_value(b"requests", requests);
    uart::key_value(b"depth", depth);
    let hertz = clock::tsc_khz(cmdline)? * 1000;
    uart::key_value(b"iops", (requests * hertz).checked_div(ticks).unwrap_or(0));
    report(cmdline, &disk, ticks)
}
