use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::bindings::virtio_ring::VRING_USED_F_NO_NOTIFY;
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

use super::MockInterrupt;
use crate::virtio::features::RING_EVENT_IDX;
use crate::virtio::setup::QueueSetup;
use crate::virtio::shared::{Shared, Stopping};
use crate::virtio::{Queue, QueueError};

/// The driver's half of a split virtqueue (virtio 1.2, 2.7): three areas of guest memory, which it can
/// fill in any way. A clone is another driver on the same ring.
#[derive(Debug, Clone)]
pub struct MockRing {
    memory: GuestMemoryMmap,
    base: GuestAddress,
    size: u16,
    event_idx: bool,
    next_available: u16,
    /// The available index when the driver last asked whether to notify.
    last_kick: u16,
    next_used: u16,
    free: Vec<u16>,
}

/// An entry of the used ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Head of the chain.
    pub id: u32,
    /// How many bytes the device says it wrote.
    pub len: u32,
}

impl MockRing {
    /// A ring of `size` entries (a power of two), from `base` (a multiple of 16) on.
    #[must_use]
    pub fn new(memory: GuestMemoryMmap, base: GuestAddress, size: u16) -> Self {
        let mut ring = Self {
            memory,
            base,
            size,
            event_idx: false,
            next_available: 0,
            last_kick: 0,
            next_used: 0,
            free: Vec::new(),
        };
        ring.clear();
        ring
    }

    /// The same ring elsewhere, with what lies there; it need not be a place for one.
    #[must_use]
    pub fn at(&self, base: GuestAddress, size: u16) -> Self {
        Self { base, size, ..self.clone() }
    }

    /// To the state before first use, all zeros.
    pub fn clear(&mut self) {
        let len = self.used().0 - self.base.0 + 8 * u64::from(self.size) + 6;
        self.memory.write_slice(&vec![0; len as usize], self.base).unwrap();
        (self.next_available, self.last_kick, self.next_used) = (0, 0, 0);
        self.free = (0..self.size).rev().collect();
    }

    /// What was negotiated: from now on it follows `EVENT_IDX`, or not.
    pub fn set_features(&mut self, features: u64) {
        self.event_idx = features & RING_EVENT_IDX != 0;
    }

    /// Its size in entries.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the descriptor table lies.
    pub fn descriptors(&self) -> GuestAddress {
        self.base
    }

    /// Where the available ring lies.
    pub fn available(&self) -> GuestAddress {
        GuestAddress(self.base.0.wrapping_add(16 * u64::from(self.size)))
    }

    /// Where the used ring lies.
    pub fn used(&self) -> GuestAddress {
        let end = self.available().0.wrapping_add(2 * u64::from(self.size) + 6);
        GuestAddress(end.wrapping_add(3) & !3)
    }

    /// The device's half, as it is at `DRIVER_OK`, without a transport.
    ///
    /// # Errors
    /// What is wrong with the ring.
    pub fn activate(&self, features: u64, interrupt: &MockInterrupt) -> Result<Queue, QueueError> {
        let shared = Arc::new(Shared::new(Box::new(interrupt.clone()), 0).unwrap());
        let mut setup = QueueSetup::new(0, self.size);
        setup.descriptors = self.descriptors().0;
        setup.driver = self.available().0;
        setup.device = self.used().0;
        let memory = Arc::new(self.memory.clone());
        setup.activate(&memory, features, &shared, &Stopping::default())
    }

    /// Writes a descriptor.
    pub fn set_descriptor(
        &self,
        index: u16,
        address: GuestAddress,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let table = self.descriptors();
        self.set_descriptor_at(table, index, address, len, flags, next);
    }

    /// Writes a descriptor of the (indirect) table at `table`.
    pub fn set_descriptor_at(
        &self,
        table: GuestAddress,
        index: u16,
        address: GuestAddress,
        len: u32,
        flags: u16,
        next: u16,
    ) {
        let descriptor = RawDescriptor::from(Descriptor::new(address.0, len, flags, next));
        self.memory.write_obj(descriptor, table.unchecked_add(16 * u64::from(index))).unwrap();
    }

    /// A descriptor that nobody uses.
    pub fn take_descriptor(&mut self) -> u16 {
        self.free.pop().expect("the ring is full")
    }

    /// Gives one back.
    pub fn give_descriptor(&mut self, index: u16) {
        self.free.push(index);
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_available % self.size);
        self.memory.write_obj(head.to_le(), self.available().unchecked_add(4 + 2 * slot)).unwrap();
        self.set_available_index(self.next_available.wrapping_add(1));
    }

    /// Writes the available index.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = index;
        self.store(self.available().unchecked_add(2), index, Ordering::Release);
    }

    /// Writes the flags of the available ring.
    pub fn set_available_flags(&self, flags: u16) {
        self.store(self.available(), flags, Ordering::Release);
    }

    /// Asks for an interrupt once the used index has passed `index`.
    pub fn set_used_event(&self, index: u16) {
        let address = self.available().unchecked_add(4 + 2 * u64::from(self.size));
        self.store(address, index, Ordering::Release);
    }

    /// The available index of which the device wants to be notified.
    pub fn available_event(&self) -> u16 {
        self.load(self.used().unchecked_add(4 + 8 * u64::from(self.size)))
    }

    /// The flags of the used ring.
    pub fn used_flags(&self) -> u16 {
        self.load(self.used())
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.load(self.used().unchecked_add(2))
    }

    /// Whether the device wants to be notified of what was made available since the last call (2.7.10).
    pub fn wants_notification(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.last_kick, self.next_available);
        self.last_kick = new;
        if !self.event_idx {
            return u32::from(self.used_flags()) & VRING_USED_F_NO_NOTIFY == 0;
        }
        let event = self.available_event();
        new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
    }

    /// Takes the next entry of the used ring, and asks for an interrupt on the one after.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.next_used == self.used_index() {
            return None;
        }
        let slot = u64::from(self.next_used % self.size);
        let address = self.used().unchecked_add(4 + 8 * slot);
        let [id, len]: [u32; 2] = self.memory.read_obj(address).unwrap();
        self.next_used = self.next_used.wrapping_add(1);
        self.set_used_event(self.next_used);
        fence(Ordering::SeqCst);
        Some(Used { id: u32::from_le(id), len: u32::from_le(len) })
    }

    fn load(&self, address: GuestAddress) -> u16 {
        u16::from_le(self.memory.load(address, Ordering::Acquire).unwrap())
    }

    fn store(&self, address: GuestAddress, value: u16, order: Ordering) {
        self.memory.store(value.to_le(), address, order).unwrap();
    }
}
