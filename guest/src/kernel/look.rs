//! `test=shared`, `test=cpuid` and `test=msr`: prints what the monitor shows, for the host to compare; `test=read`: looks
//! at memory, so that the host has it there.

use crate::cmdline::Cmdline;
use crate::exit_code::{BAD_COMMAND_LINE, SHARED_CHANGED};
use crate::paging::PAGE_SIZE;
use crate::{TestResult, cpl0, paging, uart};

/// Prints the FNV-1a hash (64 bits) of the `bytes=N` bytes at `at=ADDRESS`; then writes to the first byte of
/// every page, and sees that nothing changes.
pub(crate) fn shared(cmdline: &Cmdline) -> TestResult {
    let address = cmdline.number(b"at")?.ok_or(BAD_COMMAND_LINE)?;
    let length = cmdline.number(b"bytes")?.ok_or(BAD_COMMAND_LINE)?;
    let start = paging::memory(address, length);
    let before = hash(start, length);
    uart::text(b"fnv1a=");
    uart::number(before, 16);
    uart::text(b"\n");
    let mut writes = 0;
    for page in (0..length).step_by(PAGE_SIZE as usize) {
        let first = start.wrapping_add(page as usize);
        // SAFETY: mapped just now, and nothing of the guest's own.
        unsafe { first.write_volatile(!first.read_volatile()) };
        writes += 1;
    }
    uart::key_value(b"writes", writes);
    if hash(start, length) == before { Ok(()) } else { Err(SHARED_CHANGED) }
}

/// Reads the first byte of each page of the `bytes=N` bytes at `at=ADDRESS`.
pub(crate) fn read(cmdline: &Cmdline) -> TestResult {
    let address = cmdline.number(b"at")?.ok_or(BAD_COMMAND_LINE)?;
    let length = cmdline.number(b"bytes")?.ok_or(BAD_COMMAND_LINE)?;
    let start = paging::memory(address, length);
    for page in (0..length).step_by(PAGE_SIZE as usize) {
        // SAFETY: mapped just now.
        unsafe { start.wrapping_add(page as usize).read_volatile() };
    }
    Ok(())
}

fn hash(start: *const u8, length: u64) -> u64 {
    (0..length as usize).fold(0xcbf2_9ce4_8422_2325, |hash: u64, offset| {
        // SAFETY: the caller has mapped so many bytes.
        let byte = unsafe { start.wrapping_add(offset).read_volatile() };
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

/// Prints the registers of `leaf=N` and `subleaf=N`.
pub(crate) fn cpuid(cmdline: &Cmdline) -> TestResult {
    let leaf = cmdline.number(b"leaf")?.ok_or(BAD_COMMAND_LINE)?;
    let subleaf = cmdline.number(b"subleaf")?.unwrap_or(0);
    let registers = cpl0::cpuid(leaf as u32, subleaf as u32);
    for (name, value) in [b"eax", b"ebx", b"ecx", b"edx"].into_iter().zip(registers) {
        uart::key_value(name, u64::from(value));
    }
    Ok(())
}

/// Prints `msr=N`. One that the monitor hides raises an exception.
pub(crate) fn msr(cmdline: &Cmdline) -> TestResult {
    let number = cmdline.number(b"msr")?.ok_or(BAD_COMMAND_LINE)?;
    uart::key_value(b"value", cpl0::read_msr(number as u32));
    Ok(())
}
