//! Feature negotiation (virtio 1.2, 2.2 and section 6).

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

/// The device follows virtio 1.0 or later; a driver must accept it.
pub const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// `used_event` and `avail_event` say when to interrupt and when to notify (2.7.7, 2.7.10).
pub const RING_EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// A descriptor may refer to a table of descriptors (2.7.5.3).
pub const RING_INDIRECT_DESC: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the transport and its queues bring to every device.
const TRANSPORT: u64 = VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;

/// What the device offers, and what the driver has written so far.
#[derive(Debug)]
pub(super) struct Features {
    offered: u64,
    driver: u64,
    /// The driver claimed a bit above the 64 that exist.
    beyond: bool,
}

impl Features {
    pub(super) fn new(device: u64) -> Self {
        Self { offered: device | TRANSPORT, driver: 0, beyond: false }
    }

    /// `DeviceFeatures` at `DeviceFeaturesSel`.
    pub(super) fn offered(&self, select: u32) -> u32 {
        let [low, high] = halves(self.offered);
        match select {
            0 => low,
            1 => high,
            _ => 0,
        }
    }

    /// `DriverFeatures` at `DriverFeaturesSel`.
    pub(super) fn accept(&mut self, select: u32, value: u32) {
        let [low, high] = halves(self.driver);
        match select {
            0 => self.driver = join(value, high),
            1 => self.driver = join(low, value),
            _ => self.beyond |= value != 0,
        }
    }

    /// The features in force, or nothing if the device refuses what the driver wrote: a bit that it
    /// does not offer, or a driver from before virtio 1.0.
    pub(super) fn negotiated(&self) -> Option<u64> {
        let acceptable =
            self.driver & !self.offered == 0 && self.driver & VERSION_1 != 0 && !self.beyond;
        acceptable.then_some(self.driver)
    }

    pub(super) fn reset(&mut self) {
        self.driver = 0;
        self.beyond = false;
    }
}

/// The low and the high half of `value`.
pub(super) fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// The value of a low and a high half.
pub(super) fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}
