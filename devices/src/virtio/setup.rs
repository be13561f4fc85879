//! A queue while the driver sets it up: registers, and what becomes of them at `DRIVER_OK`.

use std::sync::Arc;

use virtio_bindings::bindings::virtio_mmio as reg;
use virtio_queue::QueueT;
use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, halves, join};
use super::queue::{Queue, QueueError};
use super::shared::{Shared, Stopping};
use super::walk::Limits;

/// The registers of one queue, as the driver wrote them: anything.
#[derive(Debug, Clone)]
pub(super) struct QueueSetup {
    index: u16,
    pub(super) max: u16,
    pub(super) size: u32,
    pub(super) ready: bool,
    pub(super) descriptors: u64,
    pub(super) driver: u64,
    pub(super) device: u64,
}

impl QueueSetup {
    pub(super) fn new(index: u16, max: u16) -> Self {
        let size = max.into();
        Self { index, max, size, ready: false, descriptors: 0, driver: 0, device: 0 }
    }

    pub(super) fn reset(&mut self) {
        *self = Self::new(self.index, self.max);
    }

    /// The driver writes the register at `offset`; if it is not one of a queue, nothing happens.
    pub(super) fn write(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NUM => self.size = value,
            reg::VIRTIO_MMIO_QUEUE_DESC_LOW => set_low(&mut self.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_DESC_HIGH => set_high(&mut self.descriptors, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_low(&mut self.driver, value),
            reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_high(&mut self.driver, value),
            reg::VIRTIO_MMIO_QUEUE_USED_LOW => set_low(&mut self.device, value),
            reg::VIRTIO_MMIO_QUEUE_USED_HIGH => set_high(&mut self.device, value),
            _ => {}
        }
    }

    /// The queue that the registers describe.
    pub(super) fn activate(
        &self,
        memory: &Arc<GuestMemoryMmap>,
        features: u64,
        shared: &Arc<Shared>,
        stopping: &Stopping,
    ) -> Result<Queue, QueueError> {
        let queue = self.index;
        let mut ring = virtio_queue::Queue::new(self.max)
            .map_err(|source| QueueError::Ring { queue, source })?;
        let bad_size = || QueueError::Size { queue, size: self.size, max: self.max };
        let size = u16::try_from(self.size).map_err(|_| bad_size())?;
        ring.try_set_size(size).map_err(|_| bad_size())?;
        self.place(&mut ring, memory)?;
        ring.set_event_idx(features & RING_EVENT_IDX != 0);
        ring.set_ready(true);
        Ok(Queue {
            index: queue,
            ring,
            memory: memory.clone(),
            limits: Limits {
                // By what the device offers, not by what the driver chose: Linux makes its ring smaller
                // when memory is short, but not its indirect tables.
                descriptors: self.max,
                bytes: ram_size(memory).min(u32::MAX as usize),
                indirect: features & RING_INDIRECT_DESC != 0,
            },
            event_idx: features & RING_EVENT_IDX != 0,
            in_flight: vec![false; size.into()],
            in_flight_count: 0,
            spare: Vec::new(),
            unannounced: 0,
            broken: false,
            shared: shared.clone(),
            stopping: stopping.clone(),
        })
    }

    /// Puts the three parts of the ring where the driver says, if they can be there. (The infallible
    /// setters of virtio-queue would log what a guest does wrong, each time.)
    fn place(
        &self,
        ring: &mut virtio_queue::Queue,
        memory: &GuestMemoryMmap,
    ) -> Result<(), QueueError> {
        let size = u64::from(ring.size());
        let descriptors = self.part("descriptor table", self.descriptors);
        let available = self.part("available ring", self.driver);
        let used = self.part("used ring", self.device);
        // Sizes: 2.7.5, 2.7.6 and 2.7.8; the rings with `used_event` and `avail_event` behind them.
        descriptors.check(memory, size.saturating_mul(16))?;
        available.check(memory, size.saturating_mul(2).saturating_add(6))?;
        used.check(memory, size.saturating_mul(8).saturating_add(6))?;
        ring.try_set_desc_table_address(descriptors.address).map_err(|_| descriptors.error())?;
        ring.try_set_avail_ring_address(available.address).map_err(|_| available.error())?;
        ring.try_set_used_ring_address(used.address).map_err(|_| used.error())
    }

    fn part(&self, name: &'static str, address: u64) -> Part {
        Part { queue: self.index, name, address: GuestAddress(address) }
    }
}

/// One of the three parts of a ring.
struct Part {
    queue: u16,
    name: &'static str,
    address: GuestAddress,
}

impl Part {
    /// That it is in RAM, and not at zero: there it is if the driver forgot it.
    fn check(&self, memory: &GuestMemoryMmap, len: u64) -> Result<(), QueueError> {
        let fits = self.address.0 != 0
            && self.address.checked_add(len).is_some()
            && usize::try_from(len).is_ok_and(|len| memory.check_range(self.address, len));
        if fits { Ok(()) } else { Err(self.error()) }
    }

    fn error(&self) -> QueueError {
        QueueError::Placement { queue: self.queue, part: self.name, address: self.address.0 }
    }
}

fn ram_size(memory: &GuestMemoryMmap) -> usize {
    let bytes = memory.iter().fold(0u64, |sum, region| sum.saturating_add(region.len()));
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn set_low(address: &mut u64, value: u32) {
    let [_, high] = halves(*address);
    *address = join(value, high);
}

fn set_high(address: &mut u64, value: u32) {
    let [low, _] = halves(*address);
    *address = join(low, value);
}
