//! Drivers that break the rules, or that are only odd: what is wrong is counted, or needs a reset, and
//! the next frame goes its way.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use net_common::*;
use sparkler_devices::virtio::net::{Net, NetBackend, Offloads};
use vm_memory::{Bytes, GuestAddress};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

fn guest() -> (Guest, Wire) {
    let wire = Wire::with_offloads(Offloads::ALL, Offloads::ALL);
    (Guest::new(wire.net()), wire)
}

/// Offers one buffer of `len` bytes at `address`, of which the driver may have written that there is
/// more than there is memory for.
fn offer_at(guest: &mut Guest, queue: u16, address: GuestAddress, pieces: &[u32], flags: u16) {
    let ring = guest.driver.ring(queue);
    let indices: Vec<u16> = pieces.iter().map(|_| ring.take_descriptor()).collect();
    let mut next = address;
    for (position, len) in pieces.iter().enumerate() {
        let successor = indices.get(position + 1);
        let flags = flags | successor.map_or(0, |_| NEXT);
        ring.set_descriptor(indices[position], next, *len, flags, *successor.unwrap_or(&0));
        next.0 += u64::from(*len);
    }
    ring.offer(indices[0]);
    guest.driver.notify(queue);
}

#[test]
fn frames_without_a_whole_header_or_ethernet_header() {
    let (mut guest, wire) = guest();
    for len in 1..HEADER + 14 {
        guest.driver.submit(TX, &[&vec![0; len]], &[]);
        guest.driver.wait(TX);
    }
    assert_eq!(guest.stats().sent_malformed, 25);
    assert_eq!(wire.sent().len(), 0);
    guest.assert_works(&wire);
}

#[test]
fn a_transmit_chain_with_nothing_to_read() {
    let (mut guest, wire) = guest();
    assert_eq!(guest.driver.request(TX, &[], &[2000]), [0; 0]);
    assert_eq!(guest.stats().sent_malformed, 1);
    guest.assert_works(&wire);
}

#[test]
fn a_frame_of_a_mebibyte() {
    let (mut guest, wire) = guest();
    guest.send(PLAIN, &frame(65_554, 1));
    for len in [65_555, 1 << 20, 3 << 20] {
        guest.send(PLAIN, &frame(len, 1));
    }
    assert_eq!(guest.stats().sent_malformed, 3);
    assert_eq!(wire.sent().len(), 1);
    guest.assert_works(&wire);
}

#[test]
fn segmentation_of_a_wrong_kind_or_size() {
    let (mut guest, wire) = guest();
    let sound = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    let mut wrong = Vec::new();
    let mut with = |position: usize, bytes: &[u8]| {
        let mut header = sound;
        header[position..position + bytes.len()].copy_from_slice(bytes);
        wrong.push(header);
    };
    (2..=0x7f).filter(|kind| ![4, 5].contains(kind)).for_each(|kind| with(1, &[kind]));
    (0x80..=0xff).filter(|kind| ![0x81, 0x84].contains(kind)).for_each(|kind| with(1, &[kind]));
    with(0, &[0]); // Without checksum.
    with(4, &[0, 0]); // Segments of nothing.
    with(2, &[0xff, 0xff]); // A header longer than the frame.
    with(6, &[0xff, 0xff]); // A checksum behind the frame.
    with(8, &[0xff, 0xff]);
    with(6, &3000u16.to_le_bytes());
    with(6, &2983u16.to_le_bytes()); // By a byte.
    for header in &wrong {
        guest.send(*header, &frame(3000, 1));
    }
    assert_eq!(guest.stats().sent_malformed, wrong.len() as u64);
    assert_eq!(wire.sent().len(), 0);
    guest.send(sound, &frame(3000, 1));
    assert_eq!(wire.sent().len(), 1);
    guest.assert_works(&wire);
}

#[test]
fn segmentation_that_the_backend_never_offered() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    for header in
        [[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0], [1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]]
    {
        guest.send(header, &frame(3000, 1));
    }
    assert_eq!(guest.stats().sent_malformed, 2);
    guest.assert_works(&wire);
}

#[test]
fn num_buffers_of_a_driver_means_nothing() {
    let (mut guest, wire) = guest();
    for number in [1u16, 2, 256, 0xffff] {
        let mut header = PLAIN;
        header[10..].copy_from_slice(&number.to_le_bytes());
        guest.send(header, &frame(60, 1));
        // What lies in a buffer beforehand does not matter either.
        let address = guest.driver.buffer(2048);
        guest.driver.memory().write_slice(&[0xff; 2048], address).unwrap();
        offer_at(&mut guest, RX, address, &[2048], WRITE);
        wire.give(&frame(60, 2));
        let used = wait_for("the buffer", || guest.driver.ring(RX).take_used());
        assert_eq!(used.len, 72);
        let mut bytes = [0; 72];
        guest.driver.memory().read_slice(&mut bytes, address).unwrap();
        assert_eq!((&bytes[10..12], &bytes[12..]), (&[1, 0][..], &frame(60, 2)[..]));
    }
    assert_eq!(wire.sent().len(), 4);
}

#[test]
fn a_frame_that_does_not_fit_into_all_buffers_together() {
    let (mut guest, wire) = guest();
    // All that the queue can hold: 3 KiB.
    guest.offer(256, 12);
    wire.give(&frame(65_550, 1));
    wire.give(&frame(1000, 2));
    let received = guest.receive();
    assert_eq!((received.num_buffers(), received.frame), (85, frame(1000, 2)));
    assert_eq!(guest.stats().received_too_long, 1);
    guest.assert_works(&wire);
}

#[test]
fn the_same_with_chains_of_several_descriptors() {
    let (mut guest, wire) = guest();
    for _ in 0..85 {
        guest.driver.submit(RX, &[], &[5, 5, 5]);
    }
    wire.give(&frame(9000, 1));
    wire.give(&frame(100, 2));
    assert_eq!(guest.receive().frame, frame(100, 2));
    assert_eq!(guest.stats().received_too_long, 1);
}

#[test]
fn chains_of_one_byte_descriptors() {
    let (mut guest, wire) = guest();
    for len in [14, 60, 244] {
        let frame = frame(len, 1);
        let bytes = [&PLAIN, frame.as_slice()].concat();
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        guest.driver.submit(TX, &pieces, &[]);
        guest.driver.wait(TX);
        assert_eq!(wire.sent().last().unwrap().1, frame);
        guest.driver.submit(RX, &[], &vec![1; len + HEADER]);
        wire.give(&frame);
        assert_eq!(guest.receive().frame, frame);
    }
    // In many such chains, each of them full.
    for _ in 0..4 {
        guest.driver.submit(RX, &[], &[1; 50]);
    }
    wire.give(&frame(180, 3));
    let received = guest.receive();
    assert_eq!((received.num_buffers(), received.frame), (4, frame(180, 3)));
}

#[test]
fn a_receive_buffer_without_room_for_a_header_needs_a_reset() {
    for room in [0, 1, 11] {
        let (mut guest, wire) = guest();
        if room == 0 {
            guest.driver.submit(RX, &[b"readable"], &[]);
        } else {
            guest.driver.submit(RX, &[], &[room]);
        }
        guest.driver.wait_for_needs_reset();
        guest.restart();
        guest.assert_works(&wire);
    }
}

#[test]
fn a_receive_buffer_with_readable_bytes_before_it() {
    let (mut guest, wire) = guest();
    guest.driver.submit(RX, &[b"readable"], &[2048]);
    wire.give(&frame(60, 1));
    assert_eq!(guest.receive().frame, frame(60, 1));
}

#[test]
fn a_flood_without_buffers_waits_and_then_arrives_in_order() {
    const FRAMES: usize = 2000;
    let nth = |number: usize| frame(60 + number % 1400, u8::try_from(number % 256).unwrap());
    let (mut guest, wire) = guest();
    (0..FRAMES).for_each(|number| wire.give(&nth(number)));
    guest.wait_for("the pause", |stats| stats.receive_paused == 1);
    // Sending goes on meanwhile, and nothing is asked for.
    for seed in 0..10 {
        guest.send(PLAIN, &frame(60, seed));
    }
    assert_eq!((wire.asked(), wire.coming()), (0, FRAMES));
    guest.offer(100, 1536);
    for number in 0..FRAMES {
        assert_eq!(guest.receive().frame, nth(number), "frame {number}");
        guest.offer(1, 1536);
    }
    let stats = guest.stats();
    assert_eq!((stats.received_frames, stats.received_malformed), (2000, 0));
}

#[test]
fn a_large_frame_waits_for_the_rest_of_its_buffers() {
    // The driver has said that it takes such.
    let (mut guest, wire) = guest();
    guest.offer(3, 1536);
    wire.give(&frame(30_000, 1));
    wire.give(&frame(60, 2));
    // Of the card; there may have been another pause before it saw the first buffer.
    wait_for("the large frame to be taken", || (wire.coming() == 1).then_some(()));
    assert_eq!(guest.driver.poll(RX), None, "a part of a frame");
    for _ in 0..3 {
        guest.offer(3, 1536);
        assert_eq!(guest.driver.poll(RX), None, "a part of a frame");
    }
    guest.offer(10, 1536);
    assert_eq!(guest.receive().frame, frame(30_000, 1));
    assert_eq!(guest.receive().frame, frame(60, 2));
    // A reset in the middle of such a frame forgets it.
    wire.give(&frame(30_000, 3));
    wait_for("the first part", || (wire.coming() == 0).then_some(()));
    guest.restart();
    guest.assert_works(&wire);
}

#[test]
fn a_frame_longer_than_the_mtu_takes_no_buffers_from_the_others() {
    for (mtu, most) in [(68, 1518), (1500, 1518), (4000, 4018)] {
        let wire = Wire::default();
        let mut guest = Guest::new(wire.net().mtu(mtu).unwrap());
        guest.offer(4, 1536);
        for (seed, len) in [(1, 65_550), (2, most + 1), (3, most), (4, 60)] {
            wire.give(&frame(len, seed));
        }
        assert_eq!(guest.receive().frame, frame(most, 3));
        assert_eq!(guest.receive().frame, frame(60, 4));
        assert_eq!(guest.stats().received_too_long, 2);
    }
    // A driver that takes what is to be cut up has the room.
    let wire = Wire::with_offloads(Offloads::ALL, Offloads::ALL);
    let mut guest = Guest::new(wire.net().mtu(1500).unwrap());
    guest.offer(50, 1536);
    wire.give(&frame(65_550, 1));
    assert_eq!(guest.receive().frame, frame(65_550, 1));
}

#[test]
fn a_frame_that_nobody_promised_room_for_does_not_wait_for_it() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    guest.offer(4, 1536);
    for (seed, len) in [(1, 65_550), (2, 9000), (3, 6000), (4, 1518)] {
        wire.give(&frame(len, seed));
    }
    // All four buffers hold it; the next one waits for others.
    assert_eq!(guest.receive().frame, frame(6000, 3));
    assert_eq!(guest.stats().received_too_long, 2);
    guest.offer(1, 1536);
    assert_eq!(guest.receive().frame, frame(1518, 4));
    // One that must be expected waits, whatever the buffers.
    wire.give(&frame(1518, 5));
    for _ in 0..3 {
        guest.offer(1, 500);
        assert_eq!(guest.driver.poll(RX), None, "a part of a frame");
    }
    guest.offer(1, 500);
    assert_eq!(guest.receive().frame, frame(1518, 5));
    assert_eq!(guest.stats().received_too_long, 2);
}

#[test]
fn a_change_that_a_backend_refuses_leaves_all_as_it_was() {
    let wires: Vec<_> = (0..3).map(|_| Wire::with_offloads(Offloads::ALL, Offloads::ALL)).collect();
    let backends = wires.iter().map(|wire| Box::new(wire.clone()) as Box<dyn NetBackend>);
    let mut guest = Guest::new(Net::backends(backends.collect()).unwrap());
    let control = 6;
    assert_eq!(guest.command_on(control, 4, 0, &[1, 0]), 0);
    let changes: Vec<_> = wires.iter().map(Wire::changes).collect();
    let all = 1u64 << 1 | 0b1111 << 7 & !(1 << 10) | 0b11 << 54;
    assert_eq!(guest.command_on(control, 5, 0, &all.to_le_bytes()), 0);
    let same: Vec<_> = wires.iter().map(Wire::changes).collect();
    assert_eq!(changes, same, "what changes nothing reached a backend");
    wires[2].set_stubborn(true);
    assert_eq!(guest.command_on(control, 4, 0, &[3, 0]), 1);
    assert_eq!(guest.command_on(control, 5, 0, &0u64.to_le_bytes()), 1);
    let active: Vec<_> = wires.iter().map(Wire::is_active).collect();
    assert_eq!(active, [Some(true), Some(false), Some(false)]);
    for wire in &wires {
        assert_eq!(wire.offloads_set(), Some(Offloads::ALL));
    }
    assert_eq!(guest.command_on(control, 4, 0, &[2, 0]), 0);
    assert_eq!(wires[1].is_active(), Some(true));
}

#[test]
fn garbage_on_the_control_queue_is_answered() {
    let (mut guest, wire) = guest();
    let macs = |count: u32, there: usize| [&count.to_le_bytes()[..], &vec![2; there * 6]].concat();
    let tables = |one: Vec<u8>, other: Vec<u8>| [one, other].concat();
    let refused: Vec<(u8, u8, Vec<u8>)> = vec![
        (0, 0, vec![]),
        (0, 0, vec![2]),
        (0, 0, vec![1, 1]),
        (0, 6, vec![1]),
        (0, 0xff, vec![1]),
        (1, 0, vec![]),
        (1, 0, macs(1, 1)),
        (1, 0, tables(macs(2, 1), vec![])),
        (1, 0, tables(macs(u32::MAX, 1), macs(0, 0))),
        (1, 0, tables(macs(0x2aaa_aaab, 0), macs(0, 0))),
        (1, 0, tables(macs(1, 1), macs(u32::MAX, 1))),
        (1, 0, tables(macs(1, 1), macs(1, 2))),
        (1, 1, vec![2, 0, 0, 0, 0]),
        (1, 1, vec![1, 0, 0, 0, 0, 1]),
        (1, 1, vec![0; 6]),
        (1, 1, vec![2; 7]),
        (1, 2, vec![0; 6]),
        (2, 0, vec![1, 0]),
        (3, 1, vec![]),
        (4, 0, vec![1, 0]),
        (5, 0, vec![0xff; 8]),
        (5, 0, vec![0; 7]),
        (5, 0, (1u64 << 7).to_le_bytes().to_vec()),
        (5, 1, vec![0; 8]),
        (6, 0, vec![0; 8]),
        (0xff, 0xff, vec![0xff; 1000]),
    ];
    for (class, command, data) in &refused {
        assert_eq!(guest.command(*class, *command, data), 1, "{class} {command} {data:?}");
    }
    assert_eq!(guest.stats().refused_commands, refused.len() as u64);
    // Not even a command; no room for the answer; and both.
    assert_eq!(guest.driver.request(CONTROL, &[&[0]], &[1]), [1]);
    assert_eq!(guest.driver.request(CONTROL, &[], &[1]), [1]);
    assert_eq!(guest.driver.request(CONTROL, &[&[0, 0, 1]], &[]), [0; 0]);
    assert_eq!(guest.driver.request(CONTROL, &[&[7]], &[]), [0; 0]);
    guest.assert_works(&wire);
}

#[test]
fn what_the_driver_does_not_want_is_filtered_and_counted() {
    let (mut guest, wire) = guest();
    let to = |address: [u8; 6]| [&address[..], &frame(60, 1)[6..]].concat();
    let own = guest.handle.mac().bytes();
    let (other, group) = ([2, 9, 9, 9, 9, 9], [1, 0, 0x5e, 1, 2, 3]);
    let arrive = |guest: &mut Guest, expected: &[[u8; 6]]| {
        guest.offer(expected.len(), 2048);
        let before = guest.stats().received_filtered;
        for address in [own, other, group, [0xff; 6]] {
            wire.give(&to(address));
        }
        for address in expected {
            assert_eq!(guest.receive().frame, to(*address));
        }
        guest.offer(1, 2048); // So that the last ones are looked at, too.
        let filtered = 4 - expected.len() as u64;
        guest.wait_for("the filter", |stats| stats.received_filtered == before + filtered);
        wire.give(&to(own));
        assert_eq!(guest.receive().frame, to(own));
    };
    arrive(&mut guest, &[own, other, group, [0xff; 6]]);
    assert_eq!(guest.command(0, 0, &[0]), 0);
    arrive(&mut guest, &[own, [0xff; 6]]);
    let table = |addresses: &[[u8; 6]]| {
        [&u32::try_from(addresses.len()).unwrap().to_le_bytes()[..], &addresses.concat()].concat()
    };
    assert_eq!(guest.command(1, 0, &[table(&[other]), table(&[group])].concat()), 0);
    arrive(&mut guest, &[own, other, group, [0xff; 6]]);
    assert_eq!(guest.command(1, 0, &[table(&[]), table(&[[1; 6]; 65])].concat()), 0);
    arrive(&mut guest, &[own, group, [0xff; 6]]);
    assert_eq!(guest.command(0, 5, &[1]), 0);
    arrive(&mut guest, &[own, group]);
}

#[test]
fn queues_that_the_driver_leaves_out() {
    let wire = Wire::default();
    for (queues, features) in [(&[TX][..], 0), (&[RX], 0), (&[], 0), (&[RX, TX], u64::MAX)] {
        let mut guest = Guest::unstarted(wire.net());
        let offered = guest.driver.offered();
        assert!(guest.driver.negotiate(1 << 32 | (offered & features)));
        for queue in queues {
            guest.driver.set_up_queue(*queue);
        }
        guest.driver.driver_ok();
        for queue in [RX, TX, CONTROL] {
            guest.driver.notify(queue);
        }
        if queues.contains(&TX) {
            let features = offered & features;
            guest.driver.ring(TX).set_features(features);
            guest.driver.submit(TX, &[&PLAIN, &frame(60, 1)], &[]);
            guest.driver.notify(TX);
            guest.driver.wait(TX);
        }
        assert!(!guest.driver.needs_reset());
        guest.restart();
        guest.assert_works(&wire);
    }
}

#[test]
fn a_backend_that_is_gone_leaves_a_card_without_link() {
    let (mut guest, wire) = guest();
    guest.assert_works(&wire);
    guest.offer(1, 2048);
    wire.cut();
    guest.wait_for_link(false);
    let asked = wire.asked();
    for seed in 0..50 {
        guest.send(PLAIN, &frame(60, seed));
    }
    assert_eq!((guest.stats().sent_without_link, wire.asked()), (50, asked));
    assert!(!guest.handle.link());
    guest.restart();
    assert!(!guest.link());
    guest.send(PLAIN, &frame(60, 1));
    guest.handle.set_link(true);
    assert!(!guest.link(), "there is nothing to plug it into");
}

#[test]
fn a_backend_that_takes_nothing_for_a_while() {
    let (mut guest, wire) = guest();
    wire.set_blocked(true);
    let frames = 0..100;
    for seed in frames.clone() {
        guest.driver.submit(TX, &[&PLAIN, &frame(60, seed)], &[]);
    }
    guest.wait_for("the pause", |stats| stats.send_paused == 1);
    assert_eq!(guest.driver.poll(TX), None);
    // Receiving goes on.
    guest.offer(1, 2048);
    wire.give(&frame(60, 7));
    assert_eq!(guest.receive().frame, frame(60, 7));
    wire.set_blocked(false);
    for _ in frames.clone() {
        guest.driver.wait(TX);
    }
    let sent: Vec<_> = wire.sent().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(sent, frames.map(|seed| frame(60, seed)).collect::<Vec<_>>());
    // A reset in the middle, and the end, wait for nothing.
    wire.set_blocked(true);
    guest.driver.submit(TX, &[&PLAIN, &frame(60, 1)], &[]);
    guest.restart();
    guest.driver.submit(TX, &[&PLAIN, &frame(60, 1)], &[]);
    guest.driver.transport().stop();
}

#[test]
fn a_backend_that_takes_nothing_and_is_gone() {
    let (mut guest, wire) = guest();
    wire.set_blocked(true);
    for seed in 0..50 {
        guest.driver.submit(TX, &[&PLAIN, &frame(60, seed)], &[]);
    }
    guest.wait_for("the pause", |stats| stats.send_paused == 1);
    guest.offer(1, 2048);
    // It still says that it takes nothing, and is gone when it is asked for a frame.
    wire.cut();
    for _ in 0..50 {
        guest.driver.wait(TX);
    }
    assert_eq!(guest.stats().sent_without_link, 50);
    guest.send(PLAIN, &frame(60, 1));
}

#[test]
fn what_was_sent_before_the_backend_went_is_counted() {
    let (mut guest, wire) = guest();
    wire.set_blocked(true);
    for seed in 0..10 {
        guest.driver.submit(TX, &[&PLAIN, &frame(60, seed)], &[]);
    }
    guest.wait_for("the pause", |stats| stats.send_paused == 1);
    wire.cut_after(4);
    for _ in 0..10 {
        guest.driver.wait(TX);
    }
    let stats = guest.stats();
    assert_eq!((stats.sent_frames, stats.sent_bytes, stats.sent_without_link), (4, 240, 6));
}

#[test]
fn a_backend_that_refuses_is_counted() {
    let (mut guest, wire) = guest();
    wire.set_refuses(true);
    guest.send(PLAIN, &frame(60, 1));
    wire.set_refuses(false);
    for len in [0, 1, 13, 65_555, 100_000] {
        wire.give(&vec![0; len]);
    }
    guest.offer(1, 2048);
    guest.wait_for("the counts", |stats| (stats.sent_refused, stats.received_malformed) == (1, 5));
    wire.give(&frame(60, 1));
    assert_eq!(guest.receive().frame, frame(60, 1));
    guest.assert_works(&wire);
}

#[test]
fn settings_that_cannot_be() {
    assert!(Net::backends(vec![]).is_err());
    let wire = Wire::default();
    assert_eq!(
        wire.net().queues(2).unwrap_err().to_string(),
        "this network card has 1 to 1 pairs of queues, not 2"
    );
    assert_eq!(
        wire.net().mtu(67).unwrap_err().to_string(),
        "an MTU of 67 is not possible: ask for 68 to 65535"
    );
    assert_eq!(
        Net::stream("/nonexistent/socket").unwrap_err().to_string(),
        "cannot connect to the socket /nonexistent/socket"
    );
}
