//! `test=diskinfo`, `test=disksum`, `test=diskfill`: the whole disk.

use super::blk::{Disk, Kind, SECTOR};
use super::content;
use super::dma::Arena;
use crate::bootinfo::BootInfo;
use crate::cmdline::Cmdline;
use crate::{TestResult, uart};

const CHUNK: u64 = 128;
/// Which write the content of a filled disk is from.
pub(crate) const FILLED: u32 = 2;

const BLOCK_SIZE: u64 = 20;
const SEGMENT_MAX: u64 = 12;
const QUEUES: u64 = 32;

pub(crate) fn info(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut disk = open(boot, cmdline)?;
    uart::key_value(b"capacity", disk.capacity());
    uart::text(b"features=0x");
    uart::number(disk.device.offered(), 16);
    uart::text(b"\n");
    uart::key_value(b"blk_size", disk.config(BLOCK_SIZE));
    uart::key_value(b"seg_max", disk.config(SEGMENT_MAX));
    uart::key_value(b"queues", disk.config(QUEUES) >> 16);
    let serial = disk.serial()?;
    uart::text(b"serial=");
    uart::text(serial.split(|byte| *byte == 0).next().unwrap_or(&[]));
    uart::text(b"\n");
    Ok(())
}

/// Prints the FNV-1a hash (64 bits) of all bytes of the disk.
pub(crate) fn sum(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut disk = open(boot, cmdline)?;
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (sector, sectors) in chunks(disk.capacity()) {
        disk.request(Kind::Read, sector, sectors)?;
        let data = disk.data(0, sectors);
        for offset in (0..data.length()).step_by(8) {
            for byte in data.read::<u64>(offset).to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            }
        }
    }
    uart::key_value(b"bytes", disk.capacity() * SECTOR);
    uart::text(b"fnv1a=");
    uart::number(hash, 16);
    uart::text(b"\n");
    Ok(())
}

/// Writes every sector, as `test=disk filled` expects it.
pub(crate) fn fill(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut disk = open(boot, cmdline)?;
    let seed = cmdline.number(b"seed")?.unwrap_or(0);
    for (sector, sectors) in chunks(disk.capacity()) {
        let data = disk.data(0, sectors);
        for index in 0..sectors {
            let place = data.part(index * SECTOR, SECTOR);
            content::write(place, seed, sector + index, FILLED);
        }
        disk.request(Kind::Write, sector, sectors)?;
    }
    disk.request(Kind::Flush, 0, 0)
}

fn open(boot: &BootInfo, cmdline: &Cmdline) -> Result<Disk, u8> {
    let mut disk = Disk::open(cmdline, &mut Arena::new(boot)?, CHUNK * SECTOR)?;
    disk.start()?;
    Ok(disk)
}

/// First sectors and lengths.
fn chunks(capacity: u64) -> impl Iterator<Item = (u64, u64)> {
    let chunk = CHUNK as usize;
    (0..capacity).step_by(chunk).map(move |sector| (sector, CHUNK.min(capacity - sector)))
}
