//! The place of a PC's real-time clock, which is not there.

use crate::BusDevice;

/// Two ports that read zeros.
///
/// Ports without a device read all ones, and those of the clock would then say that an update of it is in
/// progress. A kernel that has no ACPI table to learn from that there is no clock waits for the end of
/// it, again and again: Linux 14 seconds. Zeros are no time that it takes for one.
#[derive(Debug)]
pub struct NoRtc;

impl NoRtc {
    /// First port: the register's number; the next is its content.
    pub const PORT: u16 = 0x70;
    /// Ports in its range.
    pub const LENGTH: u16 = 2;
}

impl BusDevice for NoRtc {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {}
}
