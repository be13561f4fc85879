//! The UART (16550A) at 0x3f8, by polling. Each wait is bounded: a UART that is missing (it reads as
//! all ones) or stuck cannot hang the guest.

use crate::port::{in8, out8};

/// Data; and the other registers, of which the guest uses some.
pub(crate) const DATA: u16 = 0x3f8;
pub(crate) const INTERRUPT_ENABLE: u16 = 0x3f9;
pub(crate) const INTERRUPT_IDENTIFICATION: u16 = 0x3fa;
pub(crate) const FIFO_CONTROL: u16 = 0x3fa;
pub(crate) const LINE_CONTROL: u16 = 0x3fb;
pub(crate) const MODEM_CONTROL: u16 = 0x3fc;
pub(crate) const LINE_STATUS: u16 = 0x3fd;

const DATA_READY: u8 = 0x01;
const TRANSMITTER_EMPTY: u8 = 0x20;
/// The transmitter of a 16550A takes this many bytes once it is empty.
const FIFO_SIZE: usize = 16;
const MAX_POLLS: u32 = 100_000;

const EIGHT_BITS: u8 = 3;
const FIFO_ON: u8 = 1;
const FIFO_IS_ON: u8 = 0xc0;
const OUT2: u8 = 8;

/// Sets the usual modes, whatever they were; what was received may be lost.
pub(crate) fn set_up() {
    out8(LINE_CONTROL, EIGHT_BITS);
    out8(INTERRUPT_ENABLE, 0);
    out8(FIFO_CONTROL, FIFO_ON);
    out8(MODEM_CONTROL, OUT2);
}

/// Prints `text`, asking as seldom as the UART allows whether there is room: every access of a port
/// costs microseconds.
pub(crate) fn text(text: &[u8]) {
    let fifo_is_on = in8(INTERRUPT_IDENTIFICATION) & FIFO_IS_ON == FIFO_IS_ON;
    for chunk in text.chunks(if fifo_is_on { FIFO_SIZE } else { 1 }) {
        wait_for_transmitter();
        for &byte in chunk {
            out8(DATA, byte);
        }
    }
}

/// Prints the line `key=value`; `value` in decimal.
pub(crate) fn key_value(key: &[u8], value: u64) {
    text(key);
    text(b"=");
    number(value, 10);
    text(b"\n");
}

/// Prints `value` in the given base, at most 16.
pub(crate) fn number(value: u64, base: u64) {
    let mut digits = [0; 20];
    let mut rest = value;
    let mut first = digits.len();
    loop {
        let digit = (rest % base) as u8;
        rest /= base;
        first -= 1;
        digits[first] = if digit < 10 { b'0' + digit } else { b'a' + digit - 10 };
        if rest == 0 {
            break;
        }
    }
    text(&digits[first..]);
}

/// Whether there is a UART: an absent one reads as all ones, which no real one does.
pub(crate) fn present() -> bool {
    in8(LINE_STATUS) != 0xff
}

/// The next byte received, if there is one by now.
pub(crate) fn receive() -> Option<u8> {
    (in8(LINE_STATUS) & DATA_READY != 0).then(|| in8(DATA))
}

pub(crate) fn wait_for_transmitter() {
    for _ in 0..MAX_POLLS {
        if in8(LINE_STATUS) & TRANSMITTER_EMPTY != 0 {
            return;
        }
    }
}
