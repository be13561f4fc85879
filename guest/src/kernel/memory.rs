//! `test=memory`: the memory is as large as it should be, and is there.

use core::ptr::addr_of_mut;

use crate::bootinfo::{BootInfo, Region};
use crate::cmdline::Cmdline;
use crate::exit_code::{MEMORY_CONTENT, MEMORY_SIZE, NO_MEMORY_MAP};
use crate::paging::{self, PAGE_SIZE};
use crate::{TestResult, uart};

/// What a monitor may keep to itself of the memory it gives: below 1 MiB there are holes.
const MAY_BE_RESERVED: u64 = 1 << 20;
const MAX_PAGES: usize = 256;

/// What was in the pages before.
static mut SAVED: [u64; MAX_PAGES] = [0; MAX_PAGES];

/// The sum of the usable memory, in bytes.
pub(crate) fn total(boot: &BootInfo) -> Result<u64, u8> {
    let sum = boot.usable().iter().fold(0, |sum: u64, region| sum.saturating_add(region.size));
    if sum == 0 { Err(NO_MEMORY_MAP) } else { Ok(sum) }
}

pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let total = total(boot)?;
    uart::key_value(b"memory_bytes", total);
    uart::key_value(b"regions", boot.usable().len() as u64);
    if let Some(expected) = cmdline.number(b"expect_memory")? {
        if total > expected || expected - total > MAY_BE_RESERVED {
            return Err(MEMORY_SIZE);
        }
    }
    let saved = addr_of_mut!(SAVED).cast::<u64>();
    let mut count = 0;
    // All are written before the first is read: so pages that are the same memory show.
    for (index, page) in pages(boot).enumerate() {
        let last_word = last_word(page);
        // SAFETY: usable memory outside the guest, as `pages` says, mapped by `last_word`; the index
        // is below MAX_PAGES.
        unsafe {
            saved.add(index).write(last_word.read_volatile());
            last_word.write_volatile(pattern(page));
        }
    }
    let mut intact = true;
    for (index, page) in pages(boot).enumerate() {
        let last_word = last_word(page);
        // SAFETY: as above.
        unsafe {
            intact &= last_word.read_volatile() == pattern(page);
            last_word.write_volatile(saved.add(index).read());
        }
        count += 1;
    }
    uart::key_value(b"pages_checked", count);
    if intact { Ok(()) } else { Err(MEMORY_CONTENT) }
}

/// The first and the last page of each usable region, but for the guest's own.
fn pages(boot: &BootInfo) -> impl Iterator<Item = u64> {
    let whole = |region: &Region| {
        let first = region.start.next_multiple_of(PAGE_SIZE);
        let end = region.start.saturating_add(region.size) & !(PAGE_SIZE - 1);
        (first < end).then(|| (first, end - PAGE_SIZE))
    };
    boot.usable()
        .iter()
        .filter_map(whole)
        .flat_map(|(first, last)| [Some(first), (last != first).then_some(last)])
        .flatten()
        .filter(|page| !paging::image().contains(page))
        .take(MAX_PAGES)
}

fn last_word(page: u64) -> *mut u64 {
    paging::memory(page + PAGE_SIZE - 8, 8).cast()
}

/// A value for each page.
fn pattern(page: u64) -> u64 {
    page.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5a5a_5a5a_5a5a_5a5a
}
