//! A network interface (virtio 1.2, 5.1), with one pair of queues.

use super::content::Random;
use super::dma::{Arena, Memory};
use super::irq::Waiter;
use super::mmio::{CONFIGURATION, Device, EVENT_IDX, INDIRECT, VERSION_1};
use super::queue::{Buffers, Queue};
use crate::TestResult;
use crate::bootinfo::BootInfo;
use crate::cmdline::Cmdline;
use crate::exit_code::{BAD_COMMAND_LINE, VIRTIO_RING};
use crate::uart;

const INTERFACE: u32 = 1;

const MTU: u64 = 1 << 3;
const MAC: u64 = 1 << 5;
const MERGEABLE: u64 = 1 << 15;
const STATUS: u64 = 1 << 16;
const CONTROL: u64 = 1 << 17;
const MULTI_QUEUE: u64 = 1 << 22;
const ACCEPTED: u64 = MTU | MAC | MERGEABLE | STATUS | EVENT_IDX | INDIRECT | VERSION_1;

const RECEIVE: usize = 0;
pub(crate) const TRANSMIT: usize = 1;
pub(crate) const COMMANDS: usize = 2;
/// All of these.
const QUEUES: usize = 3;

/// In front of each frame.
pub(crate) const HEADER: u64 = 12;
const BUFFER_COUNT: u64 = 10;
/// How far into its memory a buffer begins, so that the words of the frame are aligned.
const SKEW: u64 = 4;
const MAX_SLOTS: usize = 256;
const DEFAULT_SLOTS: u64 = 64;
const MOST_BYTES: u64 = 65_550;

pub(crate) struct Net {
    pub(crate) device: Device,
    features: u64,
    pub(crate) queues: [Option<Queue>; QUEUES],
    /// With room for a header and a frame, or a part of it.
    received: Slots,
    sent: Slots,
    /// Where the frame lies that was received last.
    taken: [u64; MAX_SLOTS],
    taken_count: usize,
    /// Frames that came in several buffers are put together here.
    whole: Memory,
    /// Not cut at random.
    plain: bool,
    random: Random,
    pub(crate) waiter: Waiter,
    pub(crate) notifications: u64,
}

/// Memory for requests, and which of it is free.
struct Slots {
    memory: [Option<Memory>; MAX_SLOTS],
    free: [bool; MAX_SLOTS],
}

impl Slots {
    fn new(count: u64, bytes: u64, arena: &mut Arena) -> Result<Self, u8> {
        if !(1..=MAX_SLOTS as u64).contains(&count) {
            return Err(BAD_COMMAND_LINE);
        }
        let mut slots = Self { memory: [None; MAX_SLOTS], free: [false; MAX_SLOTS] };
        for memory in slots.memory.iter_mut().take(count as usize) {
            *memory = Some(arena.take(SKEW + bytes)?.part(SKEW, bytes));
        }
        slots.clear();
        Ok(slots)
    }

    /// All of them are free.
    fn clear(&mut self) {
        self.free = core::array::from_fn(|slot| self.memory[slot].is_some());
    }

    fn take(&mut self) -> Option<u64> {
        let slot = self.free.iter().position(|free| *free)?;
        self.free[slot] = false;
        Some(slot as u64)
    }

    fn memory(&self, slot: u64) -> Memory {
        self.memory[slot as usize].unwrap_or_else(|| panic!())
    }

    fn all(&self) -> impl Iterator<Item = Memory> {
        self.memory.iter().flatten().copied()
    }
}

impl Net {
    /// The interface `net=N`, for frames of up to `bytes`; not live yet.
    pub(crate) fn open(cmdline: &Cmdline, arena: &mut Arena, bytes: u64) -> Result<Self, u8> {
        let device = Device::open(cmdline, INTERFACE, cmdline.number(b"net")?.unwrap_or(0))?;
        let mut features = device.offered() & ACCEPTED;
        for (word, feature) in [
            (&b"noeventidx"[..], EVENT_IDX),
            (b"noindirect", INDIRECT),
            (b"nomergeable", MERGEABLE),
        ] {
            if cmdline.has(word) {
                features &= !feature;
            }
        }
        let mut queues = [const { None }; QUEUES];
        for index in [RECEIVE, TRANSMIT] {
            let mut queue = Queue::new(&device, index as u16, arena)?;
            queue.clear(features);
            queues[index] = Some(queue);
        }
        let most = queues.iter().flatten().map(Queue::slots).min().unwrap_or(0);
        let slots = |key: &[u8]| cmdline.number(key).map(|n| n.unwrap_or(DEFAULT_SLOTS).min(most));
        let largest = cmdline.number(b"buffer")?.unwrap_or(HEADER + bytes);
        if !(HEADER..=MOST_BYTES).contains(&largest) || bytes > MOST_BYTES - HEADER {
            return Err(BAD_COMMAND_LINE);
        }
        Ok(Self {
            device,
            features,
            queues,
            received: Slots::new(slots(b"buffers")?, largest, arena)?,
            sent: Slots::new(slots(b"depth")?, HEADER + bytes, arena)?,
            taken: [0; MAX_SLOTS],
            taken_count: 0,
            whole: arena.take(MOST_BYTES)?,
            plain: cmdline.has(b"plain"),
            random: Random::new(0),
            waiter: Waiter::new(cmdline, device)?,
            notifications: 0,
        })
    }

    /// Takes a control queue in use as well, from the next start on.
    pub(crate) fn use_control(&mut self, arena: &mut Arena) -> TestResult {
        self.features |= self.device.offered() & CONTROL;
        if self.features & CONTROL != 0 {
            self.queues[COMMANDS] = Some(Queue::new(&self.device, COMMANDS as u16, arena)?);
        }
        Ok(())
    }

    /// Resets the device and makes it live, without any buffers.
    pub(crate) fn start(&mut self) -> TestResult {
        self.device.negotiate(self.features)?;
        for queue in self.queues.iter_mut().flatten() {
            queue.clear(self.features);
            self.device.set_up_queue(queue);
        }
        self.received.clear();
        self.sent.clear();
        self.taken_count = 0;
        self.device.go()
    }

    /// Gives the device all buffers to receive into.
    pub(crate) fn refill(&mut self) {
        while let Some(slot) = self.received.take() {
            self.give(slot);
        }
    }

    fn give(&mut self, slot: u64) {
        let buffers = self.cut(self.received.memory(slot), true);
        if let Some(queue) = &mut self.queues[RECEIVE] {
            queue.submit(slot, buffers);
        }
    }

    fn cut(&mut self, memory: Memory, writable: bool) -> Buffers {
        let mut buffers = Buffers::default();
        if self.plain {
            buffers.push(memory, writable);
        } else {
            buffers.cut_at_random(memory, writable, &mut self.random);
        }
        buffers
    }

    /// The next frame received, which is there until the next call.
    pub(crate) fn receive(&mut self) -> Result<Option<Memory>, u8> {
        for index in 0..core::mem::take(&mut self.taken_count) {
            self.give(self.taken[index]);
        }
        let Some(first) = self.take_buffer()? else { return Ok(None) };
        if first.length() < HEADER {
            return Err(VIRTIO_RING);
        }
        let count = first.read::<u16>(BUFFER_COUNT);
        let frame = first.part(HEADER, first.length() - HEADER);
        if count == 1 {
            return Ok(Some(frame));
        }
        if self.features & MERGEABLE == 0 {
            return Err(VIRTIO_RING);
        }
        let mut length = 0;
        let mut part = frame;
        for left in (0..count).rev() {
            if part.length() > self.whole.length() - length {
                return Err(VIRTIO_RING);
            }
            self.whole.copy_from(length, part);
            length += part.length();
            if left > 0 {
                // All buffers of a frame become used at once.
                part = self.take_buffer()?.ok_or(VIRTIO_RING)?;
            }
        }
        if length == 0 { Err(VIRTIO_RING) } else { Ok(Some(self.whole.part(0, length))) }
    }

    fn take_buffer(&mut self) -> Result<Option<Memory>, u8> {
        let Some(queue) = &mut self.queues[RECEIVE] else { return Ok(None) };
        let Some((slot, written)) = queue.take_used()? else { return Ok(None) };
        let buffer = self.received.memory(slot);
        if u64::from(written) > buffer.length() {
            return Err(VIRTIO_RING);
        }
        self.taken[self.taken_count] = slot;
        self.taken_count += 1;
        Ok(Some(buffer.part(0, u64::from(written))))
    }

    /// Memory for a frame behind its empty header, unless the device has it all.
    pub(crate) fn frame(&mut self) -> Result<Option<(u64, Memory)>, u8> {
        if let Some(queue) = &mut self.queues[TRANSMIT] {
            while let Some((slot, _)) = queue.take_used()? {
                self.sent.free[slot as usize] = true;
            }
        }
        Ok(self.sent.take().map(|slot| {
            let memory = self.sent.memory(slot);
            memory.part(0, HEADER).fill(0);
            (slot, memory.part(HEADER, memory.length() - HEADER))
        }))
    }

    /// Sends the frame in this memory's first bytes.
    pub(crate) fn send(&mut self, slot: u64, length: u64) {
        self.send_raw(slot, HEADER + length);
    }

    /// Sends this many bytes, header and all.
    pub(crate) fn send_raw(&mut self, slot: u64, length: u64) {
        let buffers = self.cut(self.sent.memory(slot).part(0, length), false);
        if let Some(queue) = &mut self.queues[TRANSMIT] {
            queue.submit(slot, buffers);
        }
    }

    /// Does not send it after all.
    pub(crate) fn put_back(&mut self, slot: u64) {
        self.sent.free[slot as usize] = true;
    }

    /// What the device was given to send with this slot.
    pub(crate) fn sent_memory(&self, slot: u64) -> Memory {
        self.sent.memory(slot)
    }

    /// Whether the device has sent all that it was given.
    pub(crate) fn all_sent(&mut self) -> Result<bool, u8> {
        if let Some((slot, _)) = self.frame()? {
            self.put_back(slot);
        }
        Ok(self.sent.free.iter().filter(|free| **free).count() == self.sent.all().count())
    }

    /// Tells the device of what was submitted, where it wants to know.
    pub(crate) fn kick(&mut self) {
        for queue in self.queues.iter_mut().flatten() {
            self.notifications += u64::from(queue.kick(&self.device));
        }
    }

    /// Waits until something has gone or, if `or_received`, has come.
    pub(crate) fn wait(&mut self, or_received: bool) -> TestResult {
        let first = if or_received { RECEIVE } else { TRANSMIT };
        self.waiter.wait(&self.queues[first..])
    }

    /// All that the device may write to.
    pub(crate) fn writable(&self) -> impl Iterator<Item = Memory> {
        let rings = self.queues.iter().flatten().map(|queue| queue.parts()[2]);
        self.received.all().chain(rings)
    }

    /// 02:00:00:00:00:00 if the device does not say.
    pub(crate) fn mac(&self) -> [u8; 6] {
        if self.features & MAC == 0 {
            return [2, 0, 0, 0, 0, 0];
        }
        let [low, high] = [0, 4].map(|at| self.device.read(CONFIGURATION + at).to_le_bytes());
        [low[0], low[1], low[2], low[3], high[0], high[1]]
    }
}

/// `test=netinfo`: what the device says of itself.
pub(crate) fn info(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let net = Net::open(cmdline, &mut Arena::new(boot)?, 0)?;
    let offered = net.device.offered();
    uart::text(b"features=0x");
    uart::number(offered, 16);
    uart::text(b"\nmac=");
    for (index, byte) in net.mac().into_iter().enumerate() {
        uart::text(if index == 0 { b"" } else { b":" });
        uart::number(u64::from(byte >> 4), 16);
        uart::number(u64::from(byte & 15), 16);
    }
    uart::text(b"\n");
    let field = |at: u64| u64::from(net.device.read(CONFIGURATION + at));
    if offered & STATUS != 0 {
        uart::key_value(b"status", field(4) >> 16);
    }
    if offered & MULTI_QUEUE != 0 {
        uart::key_value(b"queue_pairs", field(8) & 0xffff);
    }
    if offered & MTU != 0 {
        uart::key_value(b"mtu", field(8) >> 16);
    }
    Ok(())
}
