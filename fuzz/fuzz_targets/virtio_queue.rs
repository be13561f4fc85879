//! A ring that the fuzzer fills, walked by the device's half: every chain that comes out, every error,
//! every used entry and every interrupt must be what a second, independent walk of the same memory
//! says. Chains are finished in any order, and offered again.

#![no_main]

use std::ops::Range;
use std::sync::LazyLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sparkler_devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use sparkler_devices::virtio::mock::{MockInterrupt, MockRing, Used};
use sparkler_devices::virtio::{Chain, ChainError, Queue, QueueError};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const KIB64: u64 = 64 << 10;
/// RAM: two regions that touch, and one above 4 GiB.
const REGIONS: [(u64, usize); 3] =
    [(0, KIB64 as usize), (KIB64, KIB64 as usize), (4 << 30, KIB64 as usize)];
const RAM: [Range<u64>; 2] = [0..2 * KIB64, 4 << 30..(4 << 30) + KIB64];
const RAM_SIZE: u64 = 3 * KIB64;
const RING: GuestAddress = GuestAddress(0x1000);
/// Indirect tables lie here; of the last, two entries lie in one region and the rest in the next.
const TABLES: [u64; 4] = [0xc000, 0xd000, 0xe000, KIB64 - 32];
/// Most descriptors in one.
const ENTRIES: u16 = 36;

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    GuestMemoryMmap::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len))).unwrap()
});

#[derive(Arbitrary, Debug)]
struct Input {
    size: u8,
    event_idx: bool,
    indirect: bool,
    table: Vec<Descriptor>,
    indirect_tables: [Vec<Descriptor>; 4],
    ops: Vec<Op>,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Descriptor {
    buffer: Buffer,
    kind: Kind,
    next: u8,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Buffer {
    Ram { address: u16, len: u8 },
    Edge { region: u8, before: u8, len: u16 },
    Large { len: u32 },
    Any { address: u64, len: u32 },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Kind {
    Last {
        write: bool,
    },
    /// It leads to the descriptor after it.
    Next {
        write: bool,
    },
    Jump {
        write: bool,
    },
    Indirect {
        table: u8,
        entries: u8,
    },
    Any {
        flags: u16,
        next: u16,
    },
}

#[derive(Arbitrary, Debug)]
enum Op {
    Offer {
        head: u8,
    },
    /// A head of any value.
    OfferAny {
        head: u16,
    },
    AvailableIndex(u16),
    Rewrite {
        index: u8,
        descriptor: Descriptor,
    },
    UsedEvent(u16),
    AvailableFlags(bool),
    Pop,
    /// Finishes one of the chains in flight.
    Push {
        which: u8,
        written: u16,
    },
    Notify,
    EnableNotifications,
    DisableNotifications,
}

/// The four fields of a descriptor.
type Fields = (u64, u32, u16, u16);

impl Descriptor {
    fn fields(&self, index: u16) -> Fields {
        let (address, len) = match self.buffer {
            Buffer::Ram { address, len } => (0x4000 + u64::from(address) / 2, u32::from(len)),
            Buffer::Edge { region, before, len } => {
                (RAM[usize::from(region) % 2].end - u64::from(before), len.into())
            }
            Buffer::Large { len } => (0, len % (2 * KIB64 as u32 + 16)),
            Buffer::Any { address, len } => (address, len),
        };
        let write = |write: bool| if write { 2 } else { 0 };
        match self.kind {
            Kind::Last { write: w } => (address, len, write(w), self.next.into()),
            Kind::Next { write: w } => (address, len, 1 | write(w), index + 1),
            Kind::Jump { write: w } => (address, len, 1 | write(w), self.next.into()),
            Kind::Indirect { table, entries } => {
                (TABLES[usize::from(table) % 4], 16 * u32::from(entries % 40), 4, 0)
            }
            Kind::Any { flags, next } => (address, len, flags, next),
        }
    }

    fn write(&self, ring: &MockRing, table: GuestAddress, index: u16) {
        let (address, len, flags, next) = self.fields(index);
        ring.set_descriptor_at(table, index, GuestAddress(address), len, flags, next);
    }
}

fn in_ram(address: u64, len: u64) -> bool {
    let end = u128::from(address) + u128::from(len);
    RAM.iter().any(|ram| address >= ram.start && end <= u128::from(ram.end))
}

/// What the chain at `head` is, by the book: readable buffers, writable buffers. `None`: it breaks a
/// rule.
fn walk(table: u64, size: u16, head: u16, indirect: bool) -> Option<[Vec<(u64, usize)>; 2]> {
    let mut buffers = [Vec::new(), Vec::new()];
    let (mut table, mut entries, mut at, mut inside) = (table, u64::from(size), head, false);
    let (mut seen, mut total) = (0, 0);
    loop {
        if u64::from(at) >= entries || !in_ram(table.checked_add(16 * u64::from(at))?, 16) {
            return None;
        }
        let address = GuestAddress(table + 16 * u64::from(at));
        let first: u64 = MEMORY.read_obj(address).unwrap();
        let [len, rest]: [u32; 2] = MEMORY.read_obj(address.unchecked_add(8)).unwrap();
        let (flags, next) = (rest as u16, (rest >> 16) as u16);
        if flags & 4 != 0 {
            let legal = indirect && !inside && flags & 1 == 0;
            if !legal || len == 0 || len % 16 != 0 || len / 16 > size.into() {
                return None;
            }
            (table, entries, at, inside) = (first, u64::from(len) / 16, 0, true);
            continue;
        }
        seen += 1;
        if seen > size {
            return None;
        }
        let writable = flags & 2 != 0;
        if !writable && !buffers[1].is_empty() {
            return None;
        }
        if len != 0 {
            total += u64::from(len);
            if !in_ram(first, len.into()) || total > RAM_SIZE {
                return None;
            }
            buffers[usize::from(writable)].push((first, len as usize));
        }
        if flags & 1 == 0 {
            return Some(buffers);
        }
        at = next;
    }
}

/// The device's half and what it should be.
struct Walk {
    ring: MockRing,
    queue: Queue,
    interrupt: MockInterrupt,
    size: u16,
    event_idx: bool,
    indirect: bool,
    available: u16,
    popped: u16,
    used: u16,
    /// The used index at the last `notify`.
    announced: u16,
    used_event: u16,
    no_interrupt: bool,
    in_flight: Vec<Chain>,
    broken: bool,
}

impl Walk {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Offer { head } => self.offer(u16::from(*head) % self.size),
            Op::OfferAny { head } => self.offer(*head),
            Op::AvailableIndex(index) => {
                self.ring.set_available_index(*index);
                self.available = *index;
            }
            Op::Rewrite { index, descriptor } => {
                descriptor.write(&self.ring, RING, u16::from(*index) % self.size);
            }
            Op::UsedEvent(index) => {
                self.ring.set_used_event(*index);
                self.used_event = *index;
            }
            Op::AvailableFlags(no_interrupt) => {
                self.ring.set_available_flags(u16::from(*no_interrupt));
                self.no_interrupt = *no_interrupt;
            }
            Op::Pop => self.pop(),
            Op::Push { which, written } => self.push(*which, *written),
            Op::Notify => self.notify(),
            Op::EnableNotifications => {
                let more = self.queue.enable_notifications().unwrap();
                assert_eq!(more, self.available != self.popped);
                if self.event_idx {
                    assert_eq!(self.ring.available_event(), self.popped);
                } else {
                    assert_eq!(self.ring.used_flags(), 0);
                }
            }
            Op::DisableNotifications => {
                self.queue.disable_notifications().unwrap();
                assert_eq!(self.ring.used_flags(), u16::from(!self.event_idx));
                self.queue.enable_notifications().unwrap();
            }
        }
    }

    fn offer(&mut self, head: u16) {
        self.ring.offer(head);
        self.available = self.available.wrapping_add(1);
    }

    fn pop(&mut self) {
        let result = self.queue.pop();
        if self.broken {
            assert!(matches!(result, Err(QueueError::Broken { queue: 0 })));
            return;
        }
        let waiting = self.available.wrapping_sub(self.popped);
        if waiting == 0 {
            assert!(matches!(result, Ok(None)));
            return;
        }
        if waiting > self.size {
            assert!(matches!(result, Err(QueueError::AvailableIndex { queue: 0 })));
            self.broken = true;
            return;
        }
        let slot = self.ring.available().unchecked_add(4 + 2 * u64::from(self.popped % self.size));
        let head: u16 = MEMORY.read_obj(slot).unwrap();
        self.popped = self.popped.wrapping_add(1);
        if head >= self.size {
            assert!(matches!(result, Err(QueueError::Head { head: h, .. }) if h == head));
            self.broken = true;
        } else if self.in_flight.iter().any(|chain| chain.head() == head) {
            assert!(matches!(result, Err(QueueError::InFlight { head: h, .. }) if h == head));
            self.broken = true;
        } else {
            self.check(head, result);
        }
    }

    fn check(&mut self, head: u16, result: Result<Option<Chain>, QueueError>) {
        match (walk(RING.0, self.size, head, self.indirect), result) {
            (Some([readable, writable]), Ok(Some(chain))) => {
                assert_eq!(chain.head(), head);
                let segments = |segments: &[sparkler_devices::virtio::Segment]| {
                    segments.iter().map(|s| (s.address.0, s.len)).collect::<Vec<_>>()
                };
                assert_eq!(segments(chain.readable()), readable);
                assert_eq!(segments(chain.writable()), writable);
                let bytes = |run: &[(u64, usize)]| run.iter().map(|(_, len)| len).sum::<usize>();
                assert_eq!(chain.readable_len(), bytes(&readable));
                assert_eq!(chain.writable_len(), bytes(&writable));
                touch(&chain);
                self.in_flight.push(chain);
            }
            (None, Err(QueueError::Chain { head: h, source, .. })) if h == head => {
                // The guest's memory answered for whatever the checks before it let through.
                if let ChainError::Table { index, .. } = source {
                    assert!(index < self.size);
                }
                self.broken = true;
            }
            other => panic!("the chain at {head}: {other:?}"),
        }
    }

    fn push(&mut self, which: u8, written: u16) {
        if self.in_flight.is_empty() {
            return;
        }
        let chain = self.in_flight.swap_remove(usize::from(which) % self.in_flight.len());
        let (head, written) = (chain.head(), usize::from(written).min(chain.writable_len()));
        self.queue.push(chain, written).unwrap();
        let slot = self.ring.used().unchecked_add(4 + 8 * u64::from(self.used % self.size));
        let [id, len]: [u32; 2] = MEMORY.read_obj(slot).unwrap();
        let expected = Used { id: head.into(), len: written as u32 };
        assert_eq!(Used { id, len }, expected);
        self.used = self.used.wrapping_add(1);
        assert_eq!(self.ring.used_index(), self.used);
        assert_eq!(usize::from(self.queue.in_flight()), self.in_flight.len());
    }

    fn notify(&mut self) {
        let before = self.interrupt.count();
        self.queue.notify().unwrap();
        // By the book: whether the index that the driver asked for was passed since the last time.
        let mut passed = false;
        let mut index = self.announced;
        while index != self.used {
            passed |= !self.event_idx || index == self.used_event;
            index = index.wrapping_add(1);
        }
        let wanted = passed && (self.event_idx || !self.no_interrupt);
        assert_eq!(self.interrupt.count() - before, u64::from(wanted));
        self.announced = self.used;
    }
}

/// Reads all that can be read and writes half of what can be written, outside the ring's own pages.
fn touch(chain: &Chain) {
    let mut bytes = vec![0; chain.readable_len()];
    chain.read_at(0, &mut bytes).unwrap();
    let lens = chain.writable_slices(0..chain.writable_len()).map(|slice| slice.unwrap().len());
    assert_eq!(lens.sum::<usize>(), chain.writable_len());
    assert!(chain.read_at(1, &mut bytes).is_err() || bytes.is_empty());
}

fuzz_target!(|input: Input| {
    let size = 1u16 << (input.size % 6);
    let mut ring = MockRing::new(MEMORY.clone(), RING, size);
    for (index, descriptor) in (0..size).zip(&input.table) {
        descriptor.write(&ring, RING, index);
    }
    for (table, descriptors) in TABLES.map(GuestAddress).into_iter().zip(&input.indirect_tables) {
        MEMORY.write_slice(&[0; 16 * ENTRIES as usize], table).unwrap(); // Of the input before.
        for (index, descriptor) in (0..ENTRIES).zip(descriptors) {
            descriptor.write(&ring, table, index);
        }
    }
    let interrupt = MockInterrupt::default();
    let features = if input.event_idx { RING_EVENT_IDX } else { 0 }
        | if input.indirect { RING_INDIRECT_DESC } else { 0 };
    ring.set_features(features);
    let queue = ring.activate(features, &interrupt).unwrap();
    let mut walk = Walk {
        ring,
        queue,
        interrupt,
        size,
        event_idx: input.event_idx,
        indirect: input.indirect,
        available: 0,
        popped: 0,
        used: 0,
        announced: 0,
        used_event: 0,
        no_interrupt: false,
        in_flight: Vec::new(),
        broken: false,
    };
    for op in input.ops.iter().take(1000) {
        walk.apply(op);
    }
});
