//! Records that must outlive a power loss: written, flushed, and only then announced.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Write, stdout};
use std::os::unix::fs::FileExt;

/// Bytes of a record.
const SIZE: usize = 4096;

/// Writes records 1, 2, 3 … to the device without end, a few between one `fsync` and the next, and says
/// `durable: N` once those up to N are on the disk.
///
/// Record N fills the Nth page after the first, and starts anew at page 1 behind the end; its Ith
/// 64-bit word is `N ^ I << 48`, little-endian. So whoever looks knows what must be where.
pub(crate) fn write_forever(device: &str) -> Result<()> {
    let disk = File::options()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("cannot open {device}"))?;
    let pages = rustix::fs::seek(&disk, rustix::fs::SeekFrom::End(0))? / SIZE as u64;
    let places = pages.checked_sub(1).context("the disk is too small")?;
    let mut number = 0;
    for round in 0_u64.. {
        // From 1 to 8, so that some flushes have much to do and some little.
        for _ in 0..=round % 8 {
            number += 1;
            let page = (number - 1) % places + 1;
            disk.write_all_at(&record(number), page * SIZE as u64)?;
        }
        disk.sync_all()?;
        writeln!(stdout(), "durable: {number}")?;
    }
    Ok(())
}

fn record(number: u64) -> Vec<u8> {
    (0..SIZE as u64 / 8).flat_map(|word| (number ^ word << 48).to_le_bytes()).collect()
}
