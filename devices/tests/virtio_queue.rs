//! The device's half of a ring, without a transport: what it takes, what it refuses, and how it tells.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod virtio_common;

use sparkler_devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use sparkler_devices::virtio::mock::{HOLE, MockDriver, MockInterrupt, MockRing, SEAM, Used};
use sparkler_devices::virtio::{AccessError, Chain, ChainError, Queue, QueueError};
use virtio_common::TestDevice;
use virtio_common::scenarios::{INDIRECT, NEXT, RAM, WRITE};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 8;
/// RAM of the guests here: a MiB, another that touches it, and a page above 4 GiB.
const RAM_SIZE: usize = (2 << 20) + 0x1000;
const MIB: GuestAddress = GuestAddress(1 << 20);
const BUFFER: GuestAddress = GuestAddress(0x2_0000);

struct Guest {
    memory: GuestMemoryMmap,
    ring: MockRing,
    interrupt: MockInterrupt,
}

impl Guest {
    fn new() -> Self {
        let regions = [(GuestAddress(0), 1 << 20), (MIB, 1 << 20), (GuestAddress(4 << 30), 0x1000)];
        let memory = GuestMemoryMmap::from_ranges(&regions).unwrap();
        let ring = MockRing::new(memory.clone(), GuestAddress(0x1_0000), SIZE);
        Self { memory, ring, interrupt: MockInterrupt::default() }
    }

    fn queue(&mut self, features: u64) -> Queue {
        self.ring.set_features(features);
        self.ring.activate(features, &self.interrupt).unwrap()
    }

    /// What the device says of the chain at descriptor 0, all features on.
    fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        let mut queue = self.queue(RING_EVENT_IDX | RING_INDIRECT_DESC);
        self.ring.offer(0);
        queue.pop()
    }

    fn chain_error(&mut self) -> ChainError {
        match self.pop() {
            Err(QueueError::Chain { queue: 0, head: 0, source }) => source,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_chain_is_its_readable_and_its_writable_bytes_however_they_are_cut() {
    let mut guest = Guest::new();
    for (text, offset) in [("sp", 0), ("ark", 100), ("ler", 200)] {
        guest.memory.write_slice(text.as_bytes(), BUFFER.unchecked_add(offset)).unwrap();
    }
    let ring = &guest.ring;
    ring.set_descriptor(0, BUFFER, 2, NEXT, 3);
    ring.set_descriptor(3, BUFFER.unchecked_add(100), 3, NEXT, 5);
    ring.set_descriptor(5, BUFFER.unchecked_add(200), 3, NEXT, 1);
    ring.set_descriptor(1, BUFFER.unchecked_add(300), 1, WRITE | NEXT, 2);
    ring.set_descriptor(2, BUFFER.unchecked_add(400), 7, WRITE, 0);
    let chain = guest.pop().unwrap().unwrap();
    assert_eq!((chain.head(), chain.readable_len(), chain.writable_len()), (0, 8, 8));
    assert_eq!((chain.readable().len(), chain.writable().len()), (3, 2));

    let mut text = [0; 6];
    chain.read_at(1, &mut text).unwrap();
    assert_eq!(&text, b"parkle");
    chain.write_at(0, b"abcdefgh").unwrap();
    let mut written = [0; 7];
    guest.memory.read_slice(&mut written, BUFFER.unchecked_add(400)).unwrap();
    assert_eq!(&written, b"bcdefgh");

    let lens = |range| chain.readable_slices(range).map(|s| s.unwrap().len()).collect::<Vec<_>>();
    assert_eq!(lens(0..8), [2, 3, 3]);
    assert_eq!(lens(3..6), [2, 1]);
    assert_eq!(lens(5..8), [3]);
    assert_eq!(lens(8..8), [0; 0]);
}

#[test]
fn bytes_beyond_a_chain_are_an_error_and_nothing_is_written() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 4, WRITE, 0);
    let chain = guest.pop().unwrap().unwrap();
    let out_of_range = |result| matches!(result, Err(AccessError::OutOfRange { len: 4, .. }));
    assert!(out_of_range(chain.write_at(1, b"abcd")));
    assert!(out_of_range(chain.write_at(usize::MAX, b"abcd")));
    assert!(chain.read_at(0, &mut [0]).is_err());
    #[allow(clippy::reversed_empty_ranges)] // A mistaken device's range.
    let backwards = chain.writable_slices(3..2);
    assert_eq!(backwards.map(|slice| slice.is_err()).collect::<Vec<_>>(), [true]);
    let untouched: u32 = guest.memory.read_obj(BUFFER).unwrap();
    assert_eq!(untouched, 0);
}

#[test]
fn a_buffer_may_reach_over_two_regions_that_touch() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, MIB.unchecked_sub(3), 8, WRITE, 0);
    let chain = guest.pop().unwrap().unwrap();
    let slices = chain.writable_slices(0..8).map(|slice| slice.unwrap().len());
    assert_eq!(slices.collect::<Vec<_>>(), [3, 5]);
    chain.write_at(1, b"1234567").unwrap();
    let mut written = [0; 8];
    guest.memory.read_slice(&mut written, MIB.unchecked_sub(3)).unwrap();
    assert_eq!(&written, b"\x001234567");
}

#[test]
fn the_whole_of_ram_is_one_legal_request() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, GuestAddress(0), 2 << 20, NEXT, 1);
    guest.ring.set_descriptor(1, GuestAddress(4 << 30), 0x1000, 0, 0);
    assert_eq!(guest.pop().unwrap().unwrap().readable_len(), RAM_SIZE);
}

#[test]
fn more_bytes_than_ram_has_are_refused() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, GuestAddress(0), 2 << 20, NEXT, 1);
    guest.ring.set_descriptor(1, GuestAddress(0), 0x1001, 0, 0);
    assert!(matches!(guest.chain_error(), ChainError::TooManyBytes { limit: RAM_SIZE }));
}

#[test]
fn buffers_outside_ram_are_refused() {
    let hole = 2 << 20;
    let bad = [
        (hole, 1),
        (hole - 1, 2),
        ((4 << 30) - 1, 2),
        ((4 << 30) + 0xfff, 2),
        (0, u32::MAX),
        (u64::MAX, 1),
        (u64::MAX, 2),
        (u64::MAX - 0xf, 0x20),
        (1 << 63, u32::MAX),
    ];
    for (address, len) in bad {
        for flags in [0, WRITE] {
            let mut guest = Guest::new();
            guest.ring.set_descriptor(0, GuestAddress(address), len, flags, 0);
            let error = guest.chain_error();
            let expected = matches!(error, ChainError::OutsideRam { address: a, len: l } if (a, l) == (address, len));
            assert!(expected, "{address:#x}: {error:?}");
        }
    }
}

#[test]
fn descriptors_that_loop_or_lead_out_of_the_table_are_refused() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 1, NEXT, 0);
    assert!(matches!(guest.chain_error(), ChainError::TooManyDescriptors { limit: SIZE }));

    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 0, NEXT, 1); // Without a byte in it.
    guest.ring.set_descriptor(1, BUFFER, 0, NEXT, 0);
    assert!(matches!(guest.chain_error(), ChainError::TooManyDescriptors { .. }));

    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 1, NEXT, SIZE);
    let error = guest.chain_error();
    assert!(matches!(error, ChainError::NoSuchDescriptor { index: SIZE, count: SIZE }));
}

#[test]
fn a_chain_of_the_whole_table_is_legal_in_any_order() {
    let mut guest = Guest::new();
    let order = [0, 7, 2, 5, 4, 3, 6, 1];
    for pair in order.windows(2) {
        guest.ring.set_descriptor(pair[0], BUFFER, 1, NEXT, pair[1]);
    }
    guest.ring.set_descriptor(1, BUFFER, 1, WRITE, 0);
    let chain = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (7, 1));
}

#[test]
fn an_indirect_table_may_follow_direct_descriptors_and_hold_as_many_as_the_queue() {
    let mut guest = Guest::new();
    let ring = &guest.ring;
    ring.set_descriptor(0, BUFFER, 1, NEXT, 1);
    ring.set_descriptor(1, RAM.unchecked_sub(0x10_0000), 16 * 7, INDIRECT | WRITE, 0xffff);
    for index in 0..7 {
        let flags = if index == 6 { WRITE } else { NEXT };
        ring.set_descriptor_at(RAM.unchecked_sub(0x10_0000), index, BUFFER, 1, flags, index + 1);
    }
    let chain = guest.pop().unwrap().unwrap();
    assert_eq!((chain.readable_len(), chain.writable_len()), (7, 1));
}

#[test]
fn indirect_tables_that_break_the_rules_are_refused() {
    let table = GuestAddress(0x3_0000);
    let error = |len, flags| {
        let mut guest = Guest::new();
        guest.ring.set_descriptor(0, table, len, flags, 1);
        guest.ring.set_descriptor_at(table, 0, BUFFER, 1, NEXT, 1);
        guest.ring.set_descriptor_at(table, 1, table, 16, INDIRECT, 0);
        guest.chain_error()
    };
    assert!(matches!(error(32, INDIRECT), ChainError::NestedIndirect));
    assert!(matches!(error(16, INDIRECT), ChainError::NoSuchDescriptor { index: 1, count: 1 }));
    assert!(matches!(error(16, INDIRECT | NEXT), ChainError::IndirectWithNext));
    assert!(matches!(error(0, INDIRECT), ChainError::IndirectLength { len: 0 }));
    assert!(matches!(error(15, INDIRECT), ChainError::IndirectLength { len: 15 }));
    let most = u32::from(SIZE);
    for len in [16 * (most + 1), 16 * 65_535, 16 * 65_536, u32::MAX - 15] {
        assert!(matches!(error(len, INDIRECT), ChainError::TooManyDescriptors { limit: SIZE }));
    }
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, GuestAddress(2 << 20), 16, INDIRECT, 0);
    assert!(matches!(guest.chain_error(), ChainError::Table { index: 0, .. }));

    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, table, 16, INDIRECT, 0);
    let mut queue = guest.queue(0);
    guest.ring.offer(0);
    let source = match queue.pop() {
        Err(QueueError::Chain { source, .. }) => source,
        other => panic!("{other:?}"),
    };
    assert!(matches!(source, ChainError::IndirectNotNegotiated));
}

#[test]
fn readable_buffers_after_writable_ones_are_refused() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 1, WRITE | NEXT, 1);
    guest.ring.set_descriptor(1, BUFFER, 1, 0, 0);
    assert!(matches!(guest.chain_error(), ChainError::ReadableAfterWritable));
}

#[test]
fn an_available_index_that_jumps_is_an_error_and_the_queue_stays_out_of_use() {
    for jump in [SIZE + 1, 0x8000, 0xffff] {
        let mut guest = Guest::new();
        let mut queue = guest.queue(0);
        guest.ring.set_available_index(jump);
        assert!(matches!(queue.pop(), Err(QueueError::AvailableIndex { queue: 0 })));
        guest.ring.set_available_index(0);
        assert!(matches!(queue.pop(), Err(QueueError::Broken { queue: 0 })));
    }
}

#[test]
fn a_head_beyond_the_table_is_an_error() {
    for head in [SIZE, 0x7fff, 0xffff] {
        let mut guest = Guest::new();
        let mut queue = guest.queue(0);
        guest.ring.offer(head);
        assert!(matches!(queue.pop(), Err(QueueError::Head { head: h, .. }) if h == head));
    }
}

#[test]
fn a_head_is_in_flight_once_and_pushed_once_and_only_to_its_own_queue() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 4, WRITE, 0);
    let mut queue = guest.queue(0);
    guest.ring.offer(0);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(queue.in_flight(), 1);
    assert!(matches!(queue.pop(), Ok(None)));

    let mut other = Guest::new();
    let mut stranger = other.queue(0);
    let foreign = {
        let mut guest = Guest::new();
        guest.ring.set_descriptor(0, BUFFER, 4, WRITE, 0);
        guest.pop().unwrap().unwrap()
    };
    assert!(matches!(stranger.push(foreign, 0), Err(QueueError::NotInFlight { head: 0, .. })));

    queue.push(chain, 4).unwrap();
    assert_eq!(queue.in_flight(), 0);
    assert_eq!(guest.ring.take_used(), Some(Used { id: 0, len: 4 }));

    guest.ring.offer(0);
    let again = queue.pop().unwrap().unwrap(); // Used in between, so it may come again.
    guest.ring.offer(0);
    assert!(matches!(queue.pop(), Err(QueueError::InFlight { head: 0, .. })));
    queue.push(again, 0).unwrap(); // What is in flight can still be finished.
}

#[test]
fn a_device_cannot_claim_more_than_there_is_room_for() {
    let mut guest = Guest::new();
    guest.ring.set_descriptor(0, BUFFER, 4, WRITE, 0);
    let mut queue = guest.queue(0);
    guest.ring.offer(0);
    let chain = queue.pop().unwrap().unwrap();
    assert!(matches!(queue.push(chain, 5), Err(QueueError::Written { written: 5, room: 4 })));
    assert_eq!(guest.ring.take_used(), None);
}

/// Offers and uses `count` requests, with a call of `notify` after all; returns the interrupts.
fn use_some(guest: &mut Guest, queue: &mut Queue, count: u16) -> u64 {
    let before = guest.interrupt.count();
    for head in 0..count {
        guest.ring.set_descriptor(head, BUFFER, 1, WRITE, 0);
        guest.ring.offer(head);
    }
    while let Some(chain) = queue.pop().unwrap() {
        queue.push(chain, 1).unwrap();
    }
    queue.notify().unwrap();
    guest.interrupt.count() - before
}

#[test]
fn with_event_idx_the_driver_says_when_to_interrupt() {
    let mut guest = Guest::new();
    let mut queue = guest.queue(RING_EVENT_IDX);
    queue.notify().unwrap();
    assert_eq!(guest.interrupt.count(), 0, "nothing was used");
    guest.ring.set_used_event(5);
    assert_eq!(use_some(&mut guest, &mut queue, 4), 0); // Used index 4.
    assert_eq!(use_some(&mut guest, &mut queue, 1), 0); // 5: not passed yet.
    assert_eq!(use_some(&mut guest, &mut queue, 1), 1); // 6.
    assert_eq!(use_some(&mut guest, &mut queue, 8), 0); // 14: it has not asked again.
    guest.ring.set_used_event(15);
    assert_eq!(use_some(&mut guest, &mut queue, 8), 1); // 22: one for all.
}

#[test]
fn without_event_idx_a_flag_says_whether_to_interrupt() {
    let mut guest = Guest::new();
    let mut queue = guest.queue(0);
    queue.notify().unwrap();
    assert_eq!(guest.interrupt.count(), 0, "nothing was used");
    assert_eq!(use_some(&mut guest, &mut queue, 3), 1);
    guest.ring.set_available_flags(1);
    assert_eq!(use_some(&mut guest, &mut queue, 3), 0);
    guest.ring.set_available_flags(0);
    assert_eq!(use_some(&mut guest, &mut queue, 3), 1);
}

#[test]
fn the_device_says_when_to_notify_and_sees_what_came_meanwhile() {
    for features in [0, RING_EVENT_IDX] {
        let mut guest = Guest::new();
        let mut queue = guest.queue(features);
        queue.disable_notifications().unwrap();
        assert_eq!(guest.ring.used_flags(), u16::from(features == 0));
        guest.ring.set_descriptor(0, BUFFER, 1, WRITE, 0);
        guest.ring.offer(0);
        assert!(queue.enable_notifications().unwrap(), "one is there already");
        let chain = queue.pop().unwrap().unwrap();
        assert!(!queue.enable_notifications().unwrap());
        assert_eq!(guest.ring.used_flags(), 0);
        if features != 0 {
            assert_eq!(guest.ring.available_event(), 1);
        }
        queue.push(chain, 0).unwrap();
    }
}

#[test]
fn a_ring_must_be_aligned_and_in_ram() {
    let guest = Guest::new();
    let end = (2 << 20) as u64;
    let len = guest.ring.used().0 + 8 * u64::from(SIZE) + 6 - guest.ring.descriptors().0;
    let activate = |base, size| {
        // The ring cannot be cleared where there is no RAM: it is made elsewhere and moved.
        guest.ring.at(GuestAddress(base), size).activate(0, &guest.interrupt)
    };
    assert!(activate(0x1000, SIZE).is_ok());
    assert!(activate((end - len).next_multiple_of(16) - 16, SIZE).is_ok());
    for base in [0, 0x1001, 0x1002, 0x1008, end - 16, end - len + 2, end, 3 << 30, u64::MAX - 15] {
        assert!(matches!(activate(base, SIZE), Err(QueueError::Placement { .. })), "{base:#x}");
    }
}

fn wraps(features: u64) {
    const REQUESTS: u32 = 200_000;
    let mut driver = TestDevice::driver();
    driver.start_with(features);
    let (mut sent, mut received) = (0u32, 0u32);
    let mut depth = 1;
    while received < REQUESTS {
        while sent < REQUESTS && sent - received < depth {
            driver.submit(0, &[&sent.to_le_bytes()], &[4]);
            sent += 1;
        }
        let (_, answer) = driver.wait(0);
        assert_eq!(answer, received.to_le_bytes(), "in order");
        received += 1;
        depth = depth % 8 + 1; // As many as the ring holds, two descriptors each, and as few as one.
    }
    assert!(!driver.needs_reset());
    assert!(driver.interrupt().count() <= u64::from(REQUESTS));
}

#[test]
fn indices_wrap_over_200_000_requests_with_event_idx() {
    wraps(RING_EVENT_IDX);
}

#[test]
fn indices_wrap_over_200_000_requests_without_event_idx() {
    wraps(0);
}

#[test]
fn the_mock_drivers_memory_is_as_its_constants_say() {
    let driver: MockDriver = TestDevice::driver();
    let one_byte = |address| driver.memory().read_obj::<u8>(address).is_ok();
    assert!(one_byte(SEAM) && one_byte(SEAM.unchecked_sub(1)) && one_byte(HOLE.unchecked_sub(1)));
    assert!(!one_byte(HOLE) && one_byte(GuestAddress(4 << 30)));
}
