//! `test=ports` and `test=mmio`: where nothing is, reads give all ones and writes are ignored; and
//! no width of access hurts, also where something is.

use core::arch::asm;
use core::ops::Range;

use crate::exit_code::{MMIO_VALUE, PORT_VALUE};
use crate::port::{in8, in16, in32, out8, out16, out32};
use crate::{TestResult, paging, uart};

/// Nobody is here: a sound card, a printer and some that never had a meaning.
const ABSENT_PORTS: [u16; 6] = [0x222, 0x2e8, 0x378, 0x1234, 0xb000, 0xfffc];
/// What monitors have near: i8042, exit port and boot mark, UART, ACPI.
const PORTS_IN_USE: [Range<u16>; 4] = [0x5e..0x68, 0xf0..0x100, 0x3f6..0x402, 0x5fe..0x608];
/// Any write here ends the guest.
const EXIT_PORT: u16 = 0xf4;

const ABSENT_ADDRESSES: [u64; 4] = [0xd123_4000, 0xdead_0000, 0xf123_4000, 0xfd00_1000];

/// `test=ports`.
pub(crate) fn ports() -> TestResult {
    for port in ABSENT_PORTS {
        out8(port, 0);
        out16(port, 0);
        out32(port, 0);
        out_string(port);
        let all_ones = in8(port) == u8::MAX
            && in16(port) == u16::MAX
            && in32(port) == u32::MAX
            && in_string(port) == [u8::MAX; 8];
        if !all_ones {
            return Err(PORT_VALUE);
        }
    }
    for port in PORTS_IN_USE.into_iter().flatten() {
        in8(port);
        in16(port);
        in32(port);
        in_string(port);
        if !(EXIT_PORT - 3..=EXIT_PORT).contains(&port) {
            out8(port, 0);
            out16(port, 0);
            out32(port, 0);
            out_string(port);
        }
    }
    uart::set_up();
    Ok(())
}

/// `test=mmio`.
pub(crate) fn mmio() -> TestResult {
    for address in ABSENT_ADDRESSES.into_iter().flat_map(|address| [address, address + 3]) {
        let at = paging::device(address, 64);
        // SAFETY: the addresses are in the hole below 4 GiB, where no memory is.
        let all_ones = unsafe { touch(at, 0) };
        if !all_ones {
            return Err(MMIO_VALUE);
        }
    }
    Ok(())
}

fn out_string(port: u16) {
    let bytes = [0u8; 8];
    // SAFETY: reads the 8 bytes.
    unsafe {
        asm!("rep outsb", in("dx") port, inout("rsi") bytes.as_ptr() => _, inout("rcx") 8u64 => _,
             options(nostack, preserves_flags, readonly));
    }
}

fn in_string(port: u16) -> [u8; 8] {
    let mut bytes = [0u8; 8];
    // SAFETY: writes the 8 bytes.
    unsafe {
        asm!("rep insb", in("dx") port, inout("rdi") bytes.as_mut_ptr() => _,
             inout("rcx") 8u64 => _, options(nostack, preserves_flags));
    }
    bytes
}

/// Writes and reads 1, 2, 4 and 8 bytes, and a string of 8, however they are aligned; whether all that
/// was read is ones.
///
/// # Safety
/// 8 bytes at `address` are mapped, and are not memory.
pub(crate) unsafe fn touch(address: *mut u8, value: u64) -> bool {
    let (byte, word, double, quad): (u64, u64, u64, u64);
    let mut bytes = value.to_ne_bytes();
    // SAFETY: the caller vouches for the address; the strings are from and to our 8 bytes.
    unsafe {
        asm!("mov [{at}], {value:l}", "mov [{at}], {value:x}", "mov [{at}], {value:e}",
             "mov [{at}], {value:r}",
             at = in(reg) address, value = in(reg) value, options(nostack, preserves_flags));
        asm!("rep movsb", inout("rsi") bytes.as_ptr() => _, inout("rdi") address => _,
             inout("rcx") 8u64 => _, options(nostack, preserves_flags));
        asm!("mov {byte:l}, [{at}]", "mov {word:x}, [{at}]", "mov {double:e}, [{at}]",
             "mov {quad:r}, [{at}]",
             at = in(reg) address, byte = out(reg) byte, word = out(reg) word,
             double = out(reg) double, quad = lateout(reg) quad,
             options(nostack, preserves_flags, readonly));
        asm!("rep movsb", inout("rsi") address => _, inout("rdi") bytes.as_mut_ptr() => _,
             inout("rcx") 8u64 => _, options(nostack, preserves_flags));
    }
    byte as u8 == u8::MAX
        && word as u16 == u16::MAX
        && double as u32 == u32::MAX
        && quad == u64::MAX
        && bytes == [u8::MAX; 8]
}
