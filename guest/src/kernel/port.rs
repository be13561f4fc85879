//! Port I/O. The task state of each CPU has an I/O bitmap that lets CPL 3 use every port.

use core::arch::asm;

const MARK: u16 = 0xf8;

/// Writes a boot mark: the monitor notes the time.
pub(crate) fn mark(number: u8) {
    out8(MARK, number);
}

macro_rules! port_access {
    ($read:ident, $write:ident, $type:ty, $register:tt) => {
        pub(crate) fn $read(port: u16) -> $type {
            let value: $type;
            // SAFETY: reads a port; no device of a machine that we run on writes to memory.
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                     options(nomem, nostack, preserves_flags));
            }
            value
        }

        pub(crate) fn $write(port: u16, value: $type) {
            // SAFETY: writes a port; no device of a machine that we run on writes to memory.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                     options(nomem, nostack, preserves_flags));
            }
        }
    };
}

port_access!(in8, out8, u8, "al");
port_access!(in16, out16, u16, "ax");
port_access!(in32, out32, u32, "eax");
