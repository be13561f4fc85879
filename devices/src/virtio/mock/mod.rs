//! A driver for tests, fuzz targets and benches: the guest's half of a transport and of its rings.
//!
//! [`MockDriver`] behaves well unless told otherwise, and every register and every byte of its rings
//! can be reached. Anything that goes wrong is a panic, and so is waiting for more than
//! [`PATIENCE`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::arithmetic_side_effects
)] // A driver that fails is a failed test.

mod interrupt;
mod ring;

use std::collections::HashMap;
use std::time::Duration;

use virtio_bindings::bindings::virtio_mmio as reg;
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

pub use interrupt::MockInterrupt;
pub use ring::{MockRing, Used};

use super::features::VERSION_1;
use super::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use super::{MmioTransport, VirtioDevice};
use crate::BusDevice;

/// How long to wait for a device before that is a failure: longer than any machine is slow.
pub const PATIENCE: Duration = Duration::from_secs(30);

const MIB: u64 = 1 << 20;
/// Guest memory: two regions that touch at [`SEAM`], and one above [`HOLE`].
const REGIONS: [(u64, usize); 3] = [(0, 64 << 20), (64 * MIB, 4 << 20), (4 << 30, 1 << 20)];
/// Where two regions of guest memory touch.
pub const SEAM: GuestAddress = GuestAddress(64 * MIB);
/// Where there is no memory, up to 4 GiB.
pub const HOLE: GuestAddress = GuestAddress(68 * MIB);

/// Rings lie here, one every 64 KiB.
const RINGS: u64 = 0x1_0000;
/// Buffers lie between.
const BUFFERS: std::ops::Range<u64> = 4 * MIB..64 * MIB;

/// A driver, with a device on a transport and guest memory of its own.
#[derive(Debug)]
pub struct MockDriver {
    transport: MmioTransport,
    memory: GuestMemoryMmap,
    interrupt: MockInterrupt,
    rings: Vec<MockRing>,
    next_buffer: u64,
    /// By queue and head.
    requests: HashMap<(u16, u16), Request>,
}

/// A request of [`MockDriver::submit`] on its way.
#[derive(Debug)]
struct Request {
    descriptors: Vec<u16>,
    writable: Vec<(GuestAddress, usize)>,
}

impl MockDriver {
    /// A driver for `device`, which has not touched it yet.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let regions = REGIONS.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let interrupt = MockInterrupt::default();
        let sizes = device.queue_sizes().to_vec();
        let transport =
            MmioTransport::new(device, memory.clone(), Box::new(interrupt.clone())).unwrap();
        let bases = (0..).map(|index| GuestAddress(RINGS + index * 0x1_0000));
        let rings = sizes.iter().zip(bases);
        let rings = rings.map(|(size, base)| MockRing::new(memory.clone(), base, *size)).collect();
        let next_buffer = BUFFERS.start;
        Self { transport, memory, interrupt, rings, next_buffer, requests: HashMap::new() }
    }

    /// The device's transport.
    pub fn transport(&self) -> &MmioTransport {
        &self.transport
    }

    /// Guest memory.
    pub fn memory(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// The interrupt that the device raises.
    pub fn interrupt(&self) -> &MockInterrupt {
        &self.interrupt
    }

    /// The ring of a queue.
    pub fn ring(&mut self, queue: u16) -> &mut MockRing {
        &mut self.rings[usize::from(queue)]
    }

    /// Reads a register.
    pub fn read(&self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.transport.read(register.into(), &mut data);
        u32::from_le_bytes(data)
    }

    /// Writes a register.
    pub fn write(&self, register: u32, value: u32) {
        self.transport.write(register.into(), &value.to_le_bytes());
    }

    /// Reads the device status.
    pub fn status(&self) -> u32 {
        self.read(reg::VIRTIO_MMIO_STATUS)
    }

    /// Writes the device status.
    pub fn set_status(&self, status: u32) {
        self.write(reg::VIRTIO_MMIO_STATUS, status);
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let half = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        half(0) | half(1) << 32
    }

    /// From reset to `FEATURES_OK` with `features`. Whether the device accepted them.
    pub fn negotiate(&self, features: u64) -> bool {
        self.set_status(ACKNOWLEDGE);
        self.set_status(ACKNOWLEDGE | DRIVER);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, half);
        }
        self.set_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        self.status() & FEATURES_OK != 0
    }

    /// Tells the device where the ring of `queue` lies, and makes it ready.
    pub fn set_up_queue(&self, queue: u16) {
        let ring = &self.rings[usize::from(queue)];
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, ring.size().into());
        let address = |register, address: GuestAddress| {
            self.write(register, address.0 as u32);
            self.write(register + 4, (address.0 >> 32) as u32);
        };
        address(reg::VIRTIO_MMIO_QUEUE_DESC_LOW, ring.descriptors());
        address(reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, ring.available());
        address(reg::VIRTIO_MMIO_QUEUE_USED_LOW, ring.used());
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    }

    /// `DRIVER_OK`, on top of the status that there is.
    pub fn driver_ok(&self) {
        self.set_status(self.status() | DRIVER_OK);
    }

    /// From reset to a live device: every feature that it offers, every queue.
    pub fn start(&mut self) {
        self.start_with(self.offered());
    }

    /// From reset to a live device with `features` (and [`VERSION_1`]), every queue.
    pub fn start_with(&mut self, features: u64) {
        assert!(self.negotiate(features | VERSION_1), "the device refuses {features:#x}");
        for queue in 0..self.rings.len() {
            self.rings[queue].set_features(features);
            self.set_up_queue(queue as u16);
        }
        self.driver_ok();
    }

    /// Resets the device, and forgets all requests.
    pub fn reset(&mut self) {
        self.set_status(0);
        self.rings.iter_mut().for_each(MockRing::clear);
        self.requests.clear();
    }

    /// Notifies the device, whether or not it wants that.
    pub fn notify(&self, queue: u16) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue.into());
    }

    /// Whether the device says that it needs a reset.
    pub fn needs_reset(&self) -> bool {
        self.status() & DEVICE_NEEDS_RESET != 0
    }

    /// Waits until the device says that it needs a reset.
    pub fn wait_for_needs_reset(&self) {
        self.interrupt.wait_until("DEVICE_NEEDS_RESET", || self.needs_reset().then_some(()));
    }

    /// Guest memory for a buffer, filled with zeros. It comes round again after 60 MiB.
    pub fn buffer(&mut self, len: usize) -> GuestAddress {
        if self.next_buffer + len as u64 > BUFFERS.end {
            self.next_buffer = BUFFERS.start;
        }
        let address = GuestAddress(self.next_buffer);
        self.next_buffer += (len as u64).next_multiple_of(16);
        self.memory.write_slice(&vec![0; len], address).unwrap();
        address
    }

    /// Makes a request available and notifies the device if it wants that: buffers with the bytes of
    /// `readable`, then buffers of the lengths `writable`. Returns its head.
    pub fn submit(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut buffers = Vec::new();
        for bytes in readable {
            let address = self.buffer(bytes.len());
            self.memory.write_slice(bytes, address).unwrap();
            buffers.push((address, bytes.len(), 0));
        }
        let writable: Vec<_> = writable.iter().map(|&len| (self.buffer(len), len)).collect();
        let flag = VRING_DESC_F_WRITE as u16;
        buffers.extend(writable.iter().map(|&(address, len)| (address, len, flag)));

        let ring = &mut self.rings[usize::from(queue)];
        let descriptors: Vec<u16> = buffers.iter().map(|_| ring.take_descriptor()).collect();
        for (position, (address, len, flags)) in buffers.into_iter().enumerate() {
            let next = descriptors.get(position + 1);
            let flags = flags | next.map_or(0, |_| VRING_DESC_F_NEXT as u16);
            let index = descriptors[position];
            ring.set_descriptor(index, address, len as u32, flags, next.copied().unwrap_or(0));
        }
        let head = descriptors[0];
        ring.offer(head);
        let kick = ring.wants_notification();
        self.requests.insert((queue, head), Request { descriptors, writable });
        if kick {
            self.notify(queue);
        }
        head
    }

    /// Takes a finished request from the used ring, if there is one: its head, and what the device
    /// wrote.
    pub fn poll(&mut self, queue: u16) -> Option<(u16, Vec<u8>)> {
        let ring = &mut self.rings[usize::from(queue)];
        let Used { id, len } = ring.take_used()?;
        let head = u16::try_from(id).expect("used id beyond the table");
        let request = self.requests.remove(&(queue, head)).expect("used id of no request");
        request.descriptors.iter().for_each(|&index| ring.give_descriptor(index));
        let mut written = Vec::new();
        for (address, room) in request.writable {
            let mut bytes = vec![0; room.min(len as usize - written.len())];
            self.memory.read_slice(&mut bytes, address).unwrap();
            written.extend(bytes);
        }
        assert_eq!(written.len(), len as usize, "more bytes used than there is room");
        Some((head, written))
    }

    /// Waits for a finished request: its head, and what the device wrote.
    pub fn wait(&mut self, queue: u16) -> (u16, Vec<u8>) {
        let interrupt = self.interrupt.clone();
        interrupt.wait_until("a used buffer", || {
            self.write(
                reg::VIRTIO_MMIO_INTERRUPT_ACK,
                self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS),
            );
            self.poll(queue)
        })
    }

    /// One request from beginning to end: what the device wrote. No other may be on its way.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> Vec<u8> {
        let head = self.submit(queue, readable, writable);
        let (finished, written) = self.wait(queue);
        assert_eq!(finished, head);
        written
    }
}
