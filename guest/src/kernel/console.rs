//! `test=echo`, `test=sink` and `test=print`: the UART by polling.

use crate::cmdline::Cmdline;
use crate::exit_code::NO_UART;
use crate::{TestResult, uart};

const END_OF_TRANSMISSION: u8 = 4;
const LINE: &[u8; 64] = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-\n";

/// Writes back what it reads, until `q` or Ctrl-D.
pub(crate) fn echo() -> TestResult {
    require_uart()?;
    loop {
        match next_byte() {
            b'q' | END_OF_TRANSMISSION => return Ok(()),
            byte => uart::text(&[byte]),
        }
    }
}

/// Reads `bytes=N` bytes, then prints how many they were and their FNV-1a hash (64 bits).
pub(crate) fn sink(cmdline: &Cmdline) -> TestResult {
    require_uart()?;
    let count = cmdline.number(b"bytes")?.unwrap_or(0);
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for _ in 0..count {
        hash = (hash ^ u64::from(next_byte())).wrapping_mul(0x100_0000_01b3);
    }
    uart::key_value(b"bytes", count);
    uart::text(b"fnv1a=");
    uart::number(hash, 16);
    uart::text(b"\n");
    Ok(())
}

/// Prints `bytes=N` bytes: lines of 64.
pub(crate) fn print(cmdline: &Cmdline) -> TestResult {
    let mut left = cmdline.number(b"bytes")?.unwrap_or(0);
    uart::set_up();
    while left > 0 {
        let length = left.min(LINE.len() as u64);
        uart::text(LINE.get(..length as usize).unwrap_or(LINE));
        left -= length;
    }
    Ok(())
}

fn require_uart() -> TestResult {
    if uart::present() { Ok(()) } else { Err(NO_UART) }
}

fn next_byte() -> u8 {
    loop {
        if let Some(byte) = uart::receive() {
            return byte;
        }
    }
}
