//! What the loader tells: the command line and the memory map, by Linux's boot protocol
//! (Documentation/arch/x86/zero-page.rst) or by PVH (Xen's public/arch-x86/hvm/start_info.h).

use core::ptr::{addr_of_mut, read_unaligned, read_volatile};

use crate::paging;

const MAX_CMDLINE: usize = 4096;
const MAX_REGIONS: usize = 128;
/// The type of usable memory, in both protocols.
const USABLE: u32 = 1;

/// A range of usable memory.
#[derive(Clone, Copy)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) size: u64,
}

/// A copy, so that tests may overwrite the memory that it came from.
pub(crate) struct BootInfo {
    protocol: &'static [u8],
    cmdline: &'static [u8],
    usable: &'static [Region],
}

static mut CMDLINE: [u8; MAX_CMDLINE] = [0; MAX_CMDLINE];
static mut REGIONS: [Region; MAX_REGIONS] = [Region { start: 0, size: 0 }; MAX_REGIONS];

impl BootInfo {
    /// Reads what lies at `info`. To be called once.
    pub(crate) fn read(protocol: u64, info: u64) -> Self {
        if protocol == 0 { Self::read_linux(info) } else { Self::read_pvh(info) }
    }

    fn read_linux(boot_params: u64) -> Self {
        paging::memory(boot_params, 4096);
        let cmdline = u64::from(read::<u32>(boot_params + 0x228))
            | u64::from(read::<u32>(boot_params + 0xc8)) << 32;
        let entries = u64::from(read::<u8>(boot_params + 0x1e8));
        Self {
            protocol: b"Linux's protocol",
            cmdline: copy_cmdline(cmdline),
            usable: copy_usable(boot_params + 0x2d0, entries, 20),
        }
    }

    fn read_pvh(start_info: u64) -> Self {
        paging::memory(start_info, 56);
        let version = read::<u32>(start_info + 4);
        let entries = if version >= 1 { u64::from(read::<u32>(start_info + 48)) } else { 0 };
        Self {
            protocol: b"PVH",
            cmdline: copy_cmdline(read(start_info + 24)),
            usable: copy_usable(read(start_info + 40), entries, 24),
        }
    }

    pub(crate) fn protocol(&self) -> &'static [u8] {
        self.protocol
    }

    pub(crate) fn cmdline(&self) -> &'static [u8] {
        self.cmdline
    }

    /// The usable memory, in the order of the map.
    pub(crate) fn usable(&self) -> &'static [Region] {
        self.usable
    }
}

fn copy_cmdline(address: u64) -> &'static [u8] {
    if address == 0 {
        return b"";
    }
    let from = paging::memory(address, MAX_CMDLINE as u64);
    let to = addr_of_mut!(CMDLINE).cast::<u8>();
    let mut length = 0;
    // SAFETY: `from` is mapped, `to` is as long as the loop runs at most; nobody else uses it.
    unsafe {
        while length < MAX_CMDLINE {
            let byte = read_volatile(from.add(length));
            if byte == 0 {
                break;
            }
            to.add(length).write(byte);
            length += 1;
        }
        core::slice::from_raw_parts(to, length)
    }
}

/// Copies the usable ones of `entries` entries, each of `entry_size` bytes: address, size, type.
fn copy_usable(table: u64, entries: u64, entry_size: u64) -> &'static [Region] {
    paging::memory(table, entries * entry_size);
    let regions = addr_of_mut!(REGIONS).cast::<Region>();
    let mut count = 0;
    for index in 0..entries {
        let entry = table + index * entry_size;
        let region = Region { start: read(entry), size: read(entry + 8) };
        if read::<u32>(entry + 16) == USABLE && region.size > 0 && count < MAX_REGIONS {
            // SAFETY: `count` is inside the array, which nobody else uses.
            unsafe { regions.add(count).write(region) };
            count += 1;
        }
    }
    // SAFETY: as many were just written.
    unsafe { core::slice::from_raw_parts(regions, count) }
}

/// Reads a number at a mapped address.
fn read<T: Copy>(address: u64) -> T {
    // SAFETY: the callers have mapped the address; any bytes make a number.
    unsafe { read_unaligned(address as *const T) }
}
