//! The page tables, one to one. `entry.s` maps the first 4 MiB; the rest is mapped when it is wanted,
//! in pages of 2 MiB: that reaches any memory, and costs nothing for what no test looks at.

use core::ops::Range;
use core::ptr::{addr_of_mut, read_volatile, write_volatile};

pub(crate) const PAGE_SIZE: u64 = 4096;
const LARGE_PAGE_SIZE: u64 = 2 << 20;
const PRESENT: u64 = 1;
const WRITABLE_USER: u64 = 6;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Table([u64; 512]);

const POOL_SIZE: usize = 64;
static mut POOL: [Table; POOL_SIZE] = [Table([0; 512]); POOL_SIZE];
static mut POOL_USED: usize = 0;

unsafe extern "C" {
    static mut page_map: Table;
    static image_start: u8;
    static image_end: u8;
}

/// Where the guest itself lies, with its stacks and page tables.
pub(crate) fn image() -> Range<u64> {
    &raw const image_start as u64..&raw const image_end as u64
}

/// Makes the `length` bytes at the physical `address` accessible at the same virtual address.
/// Only for the boot CPU.
pub(crate) fn memory(address: u64, length: u64) -> *mut u8 {
    map(address, length, 0)
}

/// As [`memory`], for the registers of a device: not cached.
pub(crate) fn device(address: u64, length: u64) -> *mut u8 {
    map(address, length, WRITE_THROUGH | CACHE_DISABLE)
}

fn map(address: u64, length: u64, caching: u64) -> *mut u8 {
    let mut page = address & !(LARGE_PAGE_SIZE - 1);
    while page < address + length {
        map_large_page(page, caching);
        page += LARGE_PAGE_SIZE;
    }
    address as *mut u8
}

fn map_large_page(page: u64, caching: u64) {
    let mut table = addr_of_mut!(page_map);
    for shift in [39, 30] {
        let entry = entry(table, page, shift);
        // SAFETY: `entry` is inside a page table; only this CPU changes the tables.
        unsafe {
            if read_volatile(entry) & PRESENT == 0 {
                write_volatile(entry, new_table() as u64 | PRESENT | WRITABLE_USER);
            }
            table = (read_volatile(entry) & ADDRESS) as *mut Table;
        }
    }
    let entry = entry(table, page, 21);
    // SAFETY: as above. An entry that was not present is in no TLB.
    unsafe {
        if read_volatile(entry) & PRESENT == 0 {
            write_volatile(entry, page | LARGE | caching | PRESENT | WRITABLE_USER);
        }
    }
}

fn entry(table: *mut Table, address: u64, shift: u32) -> *mut u64 {
    table.cast::<u64>().wrapping_add((address >> shift) as usize & 511)
}

fn new_table() -> *mut Table {
    // SAFETY: only the boot CPU gets here, and each table of the pool is given out once.
    unsafe {
        let used = POOL_USED;
        assert!(used < POOL_SIZE);
        POOL_USED = used + 1;
        addr_of_mut!(POOL).cast::<Table>().add(used)
    }
}
