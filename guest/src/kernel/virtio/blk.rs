//! A disk (virtio 1.2, 5.2).

use super::content::Random;
use super::dma::{Arena, Memory};
use super::irq::Waiter;
use super::mmio::{CONFIGURATION, Device, EVENT_IDX, INDIRECT, VERSION_1};
use super::queue::{Buffers, Queue};
use crate::TestResult;
use crate::cmdline::Cmdline;
use crate::exit_code::{BAD_COMMAND_LINE, DISK_ERROR, VIRTIO_RING};

pub(crate) const DISK: u32 = 2;
pub(crate) const SECTOR: u64 = 512;
pub(crate) const MAX_DEPTH: usize = 128;
const MAX_QUEUES: usize = 4;

pub(crate) const READ_ONLY: u64 = 1 << 5;
const BLOCK_SIZE: u64 = 1 << 6;
pub(crate) const FLUSH: u64 = 1 << 9;
const MULTI_QUEUE: u64 = 1 << 12;
pub(crate) const DISCARD: u64 = 1 << 13;
pub(crate) const WRITE_ZEROES: u64 = 1 << 14;
const SEGMENT_MAX: u64 = 1 << 2;
const ACCEPTED: u64 = SEGMENT_MAX
    | READ_ONLY
    | BLOCK_SIZE
    | FLUSH
    | MULTI_QUEUE
    | DISCARD
    | WRITE_ZEROES
    | EVENT_IDX
    | INDIRECT
    | VERSION_1;

pub(crate) const STATUS_OK: u8 = 0;
pub(crate) const STATUS_IO_ERROR: u8 = 1;
/// What no device answers.
const STATUS_NONE: u8 = 0xff;

const HEADER: u64 = 16;
/// The data of a slot is page-aligned, with the header just before it and the status just behind it.
const DATA: u64 = 4096;
pub(crate) const HEADER_AT: u64 = DATA - HEADER;
const SERIAL: u64 = 20;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Read = 0,
    Write = 1,
    Flush = 4,
    GetId = 8,
    Discard = 11,
    WriteZeroes = 13,
}

#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) kind: Kind,
    pub(crate) sector: u64,
    pub(crate) sectors: u64,
}

pub(crate) struct Disk {
    pub(crate) device: Device,
    pub(crate) features: u64,
    pub(crate) queues: [Option<Queue>; MAX_QUEUES],
    queue_count: u64,
    slots: [Option<Slot>; MAX_DEPTH],
    pub(crate) depth: usize,
    pub(crate) waiter: Waiter,
    pub(crate) notifications: u64,
}

#[derive(Clone, Copy)]
struct Slot {
    memory: Memory,
    /// Where the status is.
    end: u64,
    kind: Kind,
    /// Bytes that the device may write.
    room: u32,
}

impl Disk {
    /// The disk `disk=N`, with memory for `depth=` (1 if not said) requests of `bytes` each; not live
    /// yet.
    pub(crate) fn open(cmdline: &Cmdline, arena: &mut Arena, bytes: u64) -> Result<Self, u8> {
        let device = Device::open(cmdline, DISK, cmdline.number(b"disk")?.unwrap_or(0))?;
        let queue_count = cmdline.number(b"queues")?.unwrap_or(1);
        let depth = cmdline.number(b"depth")?.unwrap_or(1);
        if !(1..=MAX_QUEUES as u64).contains(&queue_count)
            || !(1..=MAX_DEPTH as u64).contains(&depth)
        {
            return Err(BAD_COMMAND_LINE);
        }
        let mut features = device.offered() & ACCEPTED;
        for (word, feature) in
            [(&b"noeventidx"[..], EVENT_IDX), (b"noindirect", INDIRECT), (b"noflush", FLUSH)]
        {
            if cmdline.has(word) {
                features &= !feature;
            }
        }
        let mut queues = [const { None }; MAX_QUEUES];
        for (index, queue) in (0..queue_count as u16).zip(&mut queues) {
            let mut new = Queue::new(&device, index, arena)?;
            new.clear(features);
            *queue = Some(new);
        }
        let most = queues.iter().flatten().map(Queue::slots).sum::<u64>();
        let depth = depth.min(most) as usize;
        let mut slots = [None; MAX_DEPTH];
        for slot in slots.iter_mut().take(depth) {
            let memory = arena.take(DATA + bytes + 1)?;
            *slot = Some(Slot { memory, end: DATA, kind: Kind::Flush, room: 0 });
        }
        let waiter = Waiter::new(cmdline, device)?;
        let notifications = 0;
        Ok(Self { device, features, queues, queue_count, slots, depth, waiter, notifications })
    }

    /// Resets the device and makes it live, with nothing in flight.
    pub(crate) fn start(&mut self) -> TestResult {
        self.prepare()?;
        self.device.go()
    }

    /// All of that but the last step.
    pub(crate) fn prepare(&mut self) -> TestResult {
        self.device.negotiate(self.features)?;
        for queue in self.queues.iter_mut().flatten() {
            queue.clear(self.features);
            self.device.set_up_queue(queue);
        }
        Ok(())
    }

    /// Sectors.
    pub(crate) fn capacity(&self) -> u64 {
        self.config(0) | self.config(4) << 32
    }

    /// Four bytes of the configuration space.
    pub(crate) fn config(&self, offset: u64) -> u64 {
        u64::from(self.device.read(CONFIGURATION + offset))
    }

    pub(crate) fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    /// The data of a slot.
    pub(crate) fn data(&self, slot: usize, sectors: u64) -> Memory {
        self.slot(slot).memory.part(DATA, sectors * SECTOR)
    }

    /// All that a slot has for requests.
    pub(crate) fn slot_memory(&self, slot: usize) -> Memory {
        self.slot(slot).memory
    }

    /// Makes a request available, with its data in the slot. `cuts` cuts it into descriptors at random;
    /// without, it looks as Linux's.
    pub(crate) fn submit(&mut self, slot: usize, request: Request, cuts: Option<&mut Random>) {
        let memory = self.slot(slot).memory;
        let bytes = request.sectors * SECTOR;
        let (out, back, sector) = match request.kind {
            Kind::Read => (0, bytes, request.sector),
            Kind::Write => (bytes, 0, request.sector),
            Kind::Flush => (0, 0, 0),
            Kind::GetId => (0, SERIAL, 0),
            Kind::Discard | Kind::WriteZeroes => {
                memory.write(DATA, request.sector);
                memory.write(DATA + 8, request.sectors as u32);
                memory.write(DATA + 12, 0u32);
                (HEADER, 0, 0)
            }
        };
        memory.write(HEADER_AT, request.kind as u32);
        memory.write(HEADER_AT + 4, 0u32);
        memory.write(HEADER_AT + 8, sector);
        memory.write(DATA + out + back, STATUS_NONE);
        let end = DATA + out + back;
        self.slots[slot] = Some(Slot { memory, end, kind: request.kind, room: back as u32 + 1 });

        let mut buffers = Buffers::default();
        let to_device = memory.part(HEADER_AT, HEADER + out);
        let from_device = memory.part(DATA + out, back + 1);
        match cuts {
            Some(random) => {
                buffers.cut_at_random(to_device, false, random);
                buffers.cut_at_random(from_device, true, random);
            }
            None => {
                buffers.cut(to_device, HEADER, false);
                buffers.cut(from_device, back, true);
            }
        }
        let (queue, slot) = (slot as u64 % self.queue_count, slot as u64 / self.queue_count);
        if let Some(queue) = &mut self.queues[queue as usize] {
            queue.submit(slot, buffers);
        }
    }

    /// Tells the device of what was submitted, where it wants to know.
    pub(crate) fn kick(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            self.waiter.arm(queue);
            self.notifications += u64::from(queue.kick(&self.device));
        }
    }

    /// The next request that has ended: its slot and its status.
    pub(crate) fn take_ended(&mut self) -> Result<Option<(usize, u8)>, u8> {
        for (index, queue) in (0..).zip(self.queues.iter_mut().flatten()) {
            let Some((slot, written)) = queue.take_used()? else { continue };
            let index = (slot * self.queue_count + index) as usize;
            let slot = self.slot(index);
            let status = slot.memory.read::<u8>(slot.end);
            let all = slot.kind == Kind::Read && status == STATUS_OK;
            let least = if all { slot.room } else { 1 };
            if !(least..=slot.room).contains(&written) || status == STATUS_NONE {
                return Err(VIRTIO_RING);
            }
            return Ok(Some((index, status)));
        }
        Ok(None)
    }

    /// Waits until a request has ended.
    pub(crate) fn wait(&mut self) -> TestResult {
        self.waiter.wait(&self.queues)
    }

    /// Carries out one request in slot 0, with nothing else in flight.
    pub(crate) fn request(&mut self, kind: Kind, sector: u64, sectors: u64) -> TestResult {
        self.submit(0, Request { kind, sector, sectors }, None);
        self.kick();
        self.wait()?;
        match self.take_ended()? {
            Some((_, STATUS_OK)) => Ok(()),
            _ => Err(DISK_ERROR),
        }
    }

    /// The serial number, in slot 0.
    pub(crate) fn serial(&mut self) -> Result<[u8; SERIAL as usize], u8> {
        self.request(Kind::GetId, 0, 0)?;
        let memory = self.slot(0).memory;
        Ok(core::array::from_fn(|index| memory.read(DATA + index as u64)))
    }

    fn slot(&self, slot: usize) -> &Slot {
        self.slots[slot].as_ref().unwrap_or_else(|| panic!())
    }
}
