//! The register window of a device (virtio 1.2, 4.2), and how to find it.

use super::dma::Memory;
use super::queue::Queue;
use crate::clock::Deadline;
use crate::cmdline::{self, Cmdline};
use crate::exit_code::{
    BAD_COMMAND_LINE, VIRTIO_FEATURES, VIRTIO_MISSING, VIRTIO_NEEDS_RESET, VIRTIO_RESET,
};
use crate::{TestResult, uart};

pub(crate) const WINDOW_SIZE: u64 = 0x1000;
/// Where the windows are when nothing says otherwise, and the inputs of the IOAPIC that they share.
const FIRST_WINDOW: u64 = 0xd000_0000;
const MAX_WINDOWS: u64 = 256;
const FIRST_LINE: u64 = 5;
const LINES: u64 = 19;

const MAGIC: u32 = u32::from_le_bytes(*b"virt");
/// What a slow host may take for anything.
pub(crate) const MILLISECONDS: u64 = 20_000;

const MAGIC_VALUE: u64 = 0;
pub(crate) const DEVICE_ID: u64 = 0x8;
const VENDOR_ID: u64 = 0xc;
const DEVICE_FEATURES: u64 = 0x10;
const DEVICE_FEATURES_SELECT: u64 = 0x14;
const DRIVER_FEATURES: u64 = 0x20;
const DRIVER_FEATURES_SELECT: u64 = 0x24;
const QUEUE_SELECT: u64 = 0x30;
const QUEUE_SIZE_MAX: u64 = 0x34;
const QUEUE_SIZE: u64 = 0x38;
const QUEUE_READY: u64 = 0x44;
pub(crate) const QUEUE_NOTIFY: u64 = 0x50;
const INTERRUPT_STATUS: u64 = 0x60;
const INTERRUPT_ACKNOWLEDGE: u64 = 0x64;
pub(crate) const STATUS: u64 = 0x70;
const QUEUE_TABLE: u64 = 0x80;
const QUEUE_AVAILABLE: u64 = 0x90;
const QUEUE_USED: u64 = 0xa0;
pub(crate) const CONFIGURATION: u64 = 0x100;

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
pub(crate) const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
/// The status of a device that is live.
pub(crate) const LIVE: u32 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;

pub(crate) const INDIRECT: u64 = 1 << 28;
pub(crate) const EVENT_IDX: u64 = 1 << 29;
pub(crate) const VERSION_1: u64 = 1 << 32;

/// A device at its place.
#[derive(Clone, Copy)]
pub(crate) struct Device {
    pub(crate) window: Memory,
    /// Input of the IOAPIC.
    pub(crate) line: u32,
}

/// `test=virtio`: says what devices there are.
pub(crate) fn list(cmdline: &Cmdline) -> TestResult {
    let mut count = 0;
    while let Some(device) = nth(cmdline, count)? {
        for (name, value, base) in [
            (&b"device="[..], u64::from(device.read(DEVICE_ID)), 10),
            (b" address=0x", device.window.address(), 16),
            (b" gsi=", u64::from(device.line), 10),
            (b" vendor=0x", u64::from(device.read(VENDOR_ID)), 16),
        ] {
            uart::text(name);
            uart::number(value, base);
        }
        uart::text(b"\n");
        count += 1;
    }
    uart::key_value(b"virtio_devices", count);
    Ok(())
}

/// The device with this index among those of its type (virtio 1.2, section 5).
pub(crate) fn find(cmdline: &Cmdline, kind: u32, index: u64) -> Result<Option<Device>, u8> {
    let mut left = index;
    let mut window = 0;
    while let Some(device) = nth(cmdline, window)? {
        if device.read(DEVICE_ID) == kind {
            if left == 0 {
                return Ok(Some(device));
            }
            left -= 1;
        }
        window += 1;
    }
    Ok(None)
}

/// What is in the n-th window: of those that the command line announces as it does to Linux, or else
/// of those that follow each other without a gap.
fn nth(cmdline: &Cmdline, n: u64) -> Result<Option<Device>, u8> {
    const ANNOUNCED: &[u8] = b"virtio_mmio.device";
    let place = if cmdline.value(ANNOUNCED).is_some() {
        cmdline.values(ANNOUNCED).nth(n as usize).map(announced).transpose()?
    } else {
        let first = cmdline.number(b"virtio")?.unwrap_or(FIRST_WINDOW);
        let line = (FIRST_LINE + n % LINES) as u32;
        (n < MAX_WINDOWS).then_some((first + n * WINDOW_SIZE, WINDOW_SIZE, line))
    };
    Ok(place.and_then(|(address, size, line)| {
        let device = Device { window: Memory::registers(address, size), line };
        (device.read(MAGIC_VALUE) == MAGIC && device.read(DEVICE_ID) != 0).then_some(device)
    }))
}

/// Address, size and interrupt in `SIZE@ADDRESS:GSI`.
fn announced(text: &[u8]) -> Result<(u64, u64, u32), u8> {
    let mut parts = text.split(|byte| matches!(byte, b'@' | b':')).map(cmdline::number);
    let mut next = || parts.next().unwrap_or(Err(BAD_COMMAND_LINE));
    let (size, address, line) = (next()?, next()?, next()?);
    if !(0x200..=WINDOW_SIZE).contains(&size) {
        return Err(BAD_COMMAND_LINE);
    }
    Ok((address, size, line as u32))
}

impl Device {
    /// The device with this index, or the exit code that says that it is missing.
    pub(crate) fn open(cmdline: &Cmdline, kind: u32, index: u64) -> Result<Self, u8> {
        find(cmdline, kind, index)?.ok_or(VIRTIO_MISSING)
    }

    pub(crate) fn read(&self, register: u64) -> u32 {
        self.window.read(register)
    }

    pub(crate) fn write(&self, register: u64, value: u32) {
        self.window.write(register, value);
    }

    /// Back to the beginning; afterwards the device touches no memory.
    pub(crate) fn reset(&self) -> TestResult {
        self.write(STATUS, 0);
        let done = || self.read(STATUS) == 0;
        if Deadline::after(MILLISECONDS).wait_until(done) { Ok(()) } else { Err(VIRTIO_RESET) }
    }

    pub(crate) fn offered(&self) -> u64 {
        let half = |select| {
            self.write(DEVICE_FEATURES_SELECT, select);
            u64::from(self.read(DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// From the beginning to agreement on `features`.
    pub(crate) fn negotiate(&self, features: u64) -> TestResult {
        self.reset()?;
        self.write(STATUS, ACKNOWLEDGE);
        self.write(STATUS, ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(DRIVER_FEATURES_SELECT, select);
            self.write(DRIVER_FEATURES, half);
        }
        self.write(STATUS, ACKNOWLEDGE | DRIVER | FEATURES_OK);
        if self.read(STATUS) & FEATURES_OK == 0 { Err(VIRTIO_FEATURES) } else { Ok(()) }
    }

    /// The largest size of a queue; 0 if there is none.
    pub(crate) fn queue_size_max(&self, queue: u32) -> u32 {
        self.write(QUEUE_SELECT, queue);
        self.read(QUEUE_SIZE_MAX)
    }

    pub(crate) fn set_up_queue(&self, queue: &Queue) {
        self.write(QUEUE_SELECT, queue.index());
        self.write(QUEUE_SIZE, queue.size());
        let [table, available, used] = queue.addresses();
        for (register, address) in
            [(QUEUE_TABLE, table), (QUEUE_AVAILABLE, available), (QUEUE_USED, used)]
        {
            self.write(register, address as u32);
            self.write(register + 4, (address >> 32) as u32);
        }
        self.write(QUEUE_READY, 1);
    }

    /// The device is live from now on.
    pub(crate) fn go(&self) -> TestResult {
        self.write(STATUS, LIVE);
        self.check()
    }

    /// That the device has not given up on us.
    pub(crate) fn check(&self) -> TestResult {
        if self.needs_reset() { Err(VIRTIO_NEEDS_RESET) } else { Ok(()) }
    }

    pub(crate) fn needs_reset(&self) -> bool {
        self.read(STATUS) & NEEDS_RESET != 0
    }

    pub(crate) fn notify(&self, queue: u32) {
        self.write(QUEUE_NOTIFY, queue);
    }

    /// Takes note of an interrupt; returns its reasons.
    pub(crate) fn acknowledge(&self) -> u32 {
        let reasons = self.read(INTERRUPT_STATUS);
        self.write(INTERRUPT_ACKNOWLEDGE, reasons);
        reasons
    }
}
