//! A split virtqueue (virtio 1.2, 2.7), in the hands of its driver.
//!
//! Each slot of the queue has descriptors of its own, as many as a request may need, in the queue's
//! table or in an indirect one; so there is nothing to allocate.

use core::sync::atomic::{Ordering, fence};

use super::content::Random;
use super::dma::{Arena, Memory};
use super::mmio::{Device, EVENT_IDX, INDIRECT};
use crate::exit_code::{VIRTIO_QUEUE, VIRTIO_RING};

/// Descriptors of one slot.
pub(crate) const CHAIN: u64 = 8;
pub(crate) const MAX_SIZE: u64 = 256;
const DESCRIPTOR: u64 = 16;

const NEXT: u16 = 1;
const WRITABLE: u16 = 2;
const INDIRECT_TABLE: u16 = 4;

/// Offsets in both rings.
const FLAGS: u64 = 0;
const INDEX: u64 = 2;
const RING: u64 = 4;
/// In the flags of either: no interrupt, no notification, please.
const SILENCE: u16 = 1;

/// A buffer in a request.
#[derive(Clone, Copy)]
struct Buffer {
    memory: Memory,
    writable: bool,
}

/// A request in pieces.
#[derive(Default)]
pub(crate) struct Buffers {
    list: [Option<Buffer>; CHAIN as usize],
    count: usize,
}

impl Buffers {
    /// In one piece.
    pub(crate) fn one(memory: Memory, writable: bool) -> Self {
        let mut buffers = Self::default();
        buffers.push(memory, writable);
        buffers
    }

    /// Into two pieces, the first of `at` bytes.
    pub(crate) fn cut(&mut self, memory: Memory, at: u64, writable: bool) {
        self.push(memory.part(0, at), writable);
        self.push(memory.part(at, memory.length() - at), writable);
    }

    /// Into 1 to 4 pieces.
    pub(crate) fn cut_at_random(&mut self, memory: Memory, writable: bool, random: &mut Random) {
        let mut rest = memory;
        for _ in 0..random.below(CHAIN / 2) {
            let at = random.below(rest.length() + 1);
            self.push(rest.part(0, at), writable);
            rest = rest.part(at, rest.length() - at);
        }
        self.push(rest, writable);
    }

    /// Adds a piece, unless it is empty.
    pub(crate) fn push(&mut self, memory: Memory, writable: bool) {
        if memory.length() > 0 {
            self.list[self.count] = Some(Buffer { memory, writable });
            self.count += 1;
        }
    }
}

pub(crate) struct Queue {
    index: u16,
    size: u16,
    event_idx: bool,
    indirect: bool,
    table: Memory,
    available: Memory,
    used: Memory,
    /// The indirect tables of all slots.
    tables: Memory,
    in_flight: [bool; MAX_SIZE as usize],
    next_available: u16,
    /// Up to here the device was notified.
    notified: u16,
    next_used: u16,
}

impl Queue {
    /// Takes the memory for a queue of the device, as large as it offers.
    pub(crate) fn new(device: &Device, index: u16, arena: &mut Arena) -> Result<Self, u8> {
        let size = u64::from(device.queue_size_max(u32::from(index))).min(MAX_SIZE);
        if size < CHAIN || !size.is_power_of_two() {
            return Err(VIRTIO_QUEUE);
        }
        Ok(Self {
            index,
            size: size as u16,
            event_idx: false,
            indirect: false,
            table: arena.take(size * DESCRIPTOR)?,
            available: arena.take(RING + 2 * size + 2)?,
            used: arena.take(RING + 8 * size + 2)?,
            tables: arena.take(size * CHAIN * DESCRIPTOR)?,
            in_flight: [false; MAX_SIZE as usize],
            next_available: 0,
            notified: 0,
            next_used: 0,
        })
    }

    /// Empties it, for a device that agreed on `features`.
    pub(crate) fn clear(&mut self, features: u64) {
        self.event_idx = features & EVENT_IDX != 0;
        self.indirect = features & INDIRECT != 0;
        [self.table, self.available, self.used].iter().for_each(|part| part.fill(0));
        self.in_flight.fill(false);
        (self.next_available, self.notified, self.next_used) = (0, 0, 0);
    }

    pub(crate) fn index(&self) -> u32 {
        u32::from(self.index)
    }

    pub(crate) fn size(&self) -> u32 {
        u32::from(self.size)
    }

    pub(crate) fn addresses(&self) -> [u64; 3] {
        self.parts().map(|part| part.address())
    }

    /// Descriptor table, available ring, used ring.
    pub(crate) fn parts(&self) -> [Memory; 3] {
        [self.table, self.available, self.used]
    }

    /// How many requests it can hold.
    pub(crate) fn slots(&self) -> u64 {
        if self.indirect { u64::from(self.size) } else { u64::from(self.size) / CHAIN }
    }

    /// Makes a request of 1 to [`CHAIN`] pieces available in a slot that has none in flight.
    pub(crate) fn submit(&mut self, slot: u64, buffers: Buffers) {
        assert!(slot < self.slots() && !self.in_flight[slot as usize]);
        self.in_flight[slot as usize] = true;
        let own = CHAIN * DESCRIPTOR;
        let (chain, first) = if self.indirect {
            (self.tables.part(slot * own, own), 0)
        } else {
            (self.table.part(slot * own, own), slot * CHAIN)
        };
        let mut count = 0;
        for buffer in buffers.list.into_iter().flatten() {
            if count > 0 {
                let last = (count - 1) * DESCRIPTOR;
                chain.write(last + 12, chain.read::<u16>(last + 12) | NEXT);
            }
            let flags = if buffer.writable { WRITABLE } else { 0 };
            let next = (first + count + 1) as u16;
            describe(chain.part(count * DESCRIPTOR, DESCRIPTOR), buffer.memory, flags, next);
            count += 1;
        }
        assert!(count > 0);
        if self.indirect {
            let whole = chain.part(0, count * DESCRIPTOR);
            describe(self.table.part(slot * DESCRIPTOR, DESCRIPTOR), whole, INDIRECT_TABLE, 0);
        }
        let head = if self.indirect { slot } else { first };
        self.offer(head as u16);
    }

    /// Makes the chain at `head` available, whatever is there.
    pub(crate) fn offer(&mut self, head: u16) {
        let place = u64::from(self.next_available % self.size);
        self.available.write(RING + 2 * place, head);
        self.next_available = self.next_available.wrapping_add(1);
        self.available.store(INDEX, self.next_available);
    }

    /// Notifies the device of what was submitted, if it wants to know; returns whether.
    pub(crate) fn kick(&mut self, device: &Device) -> bool {
        let (old, new) = (self.notified, self.next_available);
        self.notified = new;
        if new == old {
            return false;
        }
        fence(Ordering::SeqCst);
        let wanted = if self.event_idx {
            let event = self.used.load(RING + 8 * u64::from(self.size));
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            self.used.load(FLAGS) & SILENCE == 0
        };
        if wanted {
            device.notify(self.index());
        }
        wanted
    }

    /// Asks for an interrupt for the next request that ends, or for none.
    pub(crate) fn ask_for_interrupt(&self, on: bool) {
        if self.event_idx {
            let event = if on { self.next_used } else { self.next_used.wrapping_sub(1) };
            self.available.store(RING + 2 * u64::from(self.size), event);
        } else {
            self.available.store(FLAGS, if on { 0 } else { SILENCE });
        }
        fence(Ordering::SeqCst);
    }

    pub(crate) fn has_used(&self) -> bool {
        self.used.load(INDEX) != self.next_used
    }

    /// The next request that ended: its slot, and how many bytes the device wrote.
    pub(crate) fn take_used(&mut self) -> Result<Option<(u64, u32)>, u8> {
        if !self.has_used() {
            return Ok(None);
        }
        let element = RING + 8 * u64::from(self.next_used % self.size);
        let head = u64::from(self.used.read::<u32>(element));
        let slot = if self.indirect { head } else { head / CHAIN };
        let whole = self.indirect || head % CHAIN == 0;
        match self.in_flight.get_mut(slot as usize) {
            Some(in_flight @ true) if whole => *in_flight = false,
            _ => return Err(VIRTIO_RING),
        }
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some((slot, self.used.read(element + 4))))
    }
}

fn describe(descriptor: Memory, memory: Memory, flags: u16, next: u16) {
    descriptor.write(0, memory.address());
    descriptor.write(8, memory.length() as u32);
    descriptor.write(12, flags);
    descriptor.write(14, next);
}
