//! Frames through a network card, both ways, in all cuts of buffers, and what the driver is told.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::sync::mpsc::{Receiver, Sender, channel};

use net_common::*;
use sparkler_devices::virtio::mock::PATIENCE;
use sparkler_devices::virtio::net::{
    BackendError, Checksum, Frame, FrameHeader, MacAddress, Net, NetBackend, Offloads, Room,
    SegmentProtocol, Segmentation,
};

const TSO4: [u8; HEADER] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
const TSO4_HEADER: FrameHeader = FrameHeader {
    checksum: Checksum::Missing { start: 34, offset: 16 },
    segmentation: Some(Segmentation {
        protocol: SegmentProtocol::Tcp4,
        size: 1448,
        header_len: 54,
        ecn: false,
    }),
};

#[test]
fn frames_of_every_size_arrive_as_they_were_sent() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    for (seed, len) in (0..).zip([14, 15, 60, 1514, 9014, 65_550]) {
        let frame = frame(len, seed);
        guest.send(PLAIN, &frame);
        assert_eq!(wire.wait_for_sent(usize::from(seed) + 1).last().unwrap().1, frame);
        guest.offer(1, 70_000);
        wire.give(&frame);
        let received = guest.receive();
        assert_eq!((received.num_buffers(), received.frame), (1, frame));
    }
    let stats = guest.stats();
    assert_eq!((stats.sent_frames, stats.received_frames), (6, 6));
    assert_eq!(stats.sent_bytes, 14 + 15 + 60 + 1514 + 9014 + 65_550);
    assert_eq!(stats.received_bytes, stats.sent_bytes);
}

#[test]
fn a_frame_may_be_cut_anywhere() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    let frame = frame(200, 1);
    let whole = [&PLAIN, frame.as_slice()].concat();
    for cut in 1..60 {
        let parts: Vec<&[u8]> = whole.chunks(cut).collect();
        guest.driver.submit(TX, &parts, &[]);
        guest.driver.wait(TX);
        assert_eq!(wire.wait_for_sent(cut).last().unwrap().1, frame);
        let room: Vec<usize> = whole.chunks(cut).map(<[u8]>::len).collect();
        guest.driver.submit(RX, &[], &room);
        wire.give(&frame);
        assert_eq!(guest.receive().frame, frame);
    }
}

#[test]
fn a_large_frame_fills_as_many_buffers_as_it_needs() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    for (seed, size, len) in
        [(1, 1536, 65_550), (2, 1536, 1524), (3, 1536, 1525), (4, 12, 1000), (5, 13, 60)]
    {
        let frame = frame(len, seed);
        let buffers = (len + HEADER).div_ceil(size);
        guest.offer(buffers, size);
        wire.give(&frame);
        let received = guest.receive();
        assert_eq!((usize::from(received.num_buffers()), &received.frame), (buffers, &frame));
        // Nothing was taken that was not needed.
        guest.assert_works(&wire);
    }
}

#[test]
fn small_and_large_frames_in_turn() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    guest.offer(200, 1536);
    let lens = [60, 9000, 1514, 65_550, 60, 60, 65_550, 14, 2037, 2036, 2048, 60];
    for _ in 0..10 {
        for (seed, len) in (0..).zip(lens) {
            wire.give(&frame(len, seed));
        }
        for (seed, len) in (0..).zip(lens) {
            let received = guest.receive();
            assert_eq!(received.frame, frame(len, seed));
            guest.offer(received.num_buffers().into(), 1536);
        }
        // And long enough without large ones that none is expected.
        for seed in 0..40 {
            wire.give(&frame(100, seed));
            assert_eq!(guest.receive().frame, frame(100, seed));
            guest.offer(1, 1536);
        }
    }
}

#[test]
fn without_mergeable_buffers_a_frame_fits_into_one_or_is_counted() {
    let wire = Wire::default();
    let mut guest = Guest::without(wire.net(), F_MRG_RXBUF);
    guest.offer(2, 1526);
    wire.give(&frame(1515, 1));
    wire.give(&frame(1514, 2));
    wire.give(&frame(65_550, 3));
    wire.give(&frame(60, 4));
    for (len, seed) in [(1514, 2), (60, 4)] {
        let received = guest.receive();
        assert_eq!((received.num_buffers(), received.frame), (1, frame(len, seed)));
    }
    assert_eq!(guest.stats().received_too_long, 2);
}

#[test]
fn offloads_are_offered_if_the_backend_has_them_and_pass_through() {
    let bits = F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_GUEST_TSO4 | F_CTRL_GUEST_OFFLOADS;
    assert_eq!(Guest::unstarted(Wire::default().net()).driver.offered() & bits, 0);

    let wire = Wire::with_offloads(Offloads::ALL, Offloads::ALL);
    let mut guest = Guest::new(wire.net());
    assert_eq!(guest.driver.offered() & bits, bits);
    wait_for("the offloads", || wire.offloads_set().filter(|set| *set == Offloads::ALL));
    let frame = frame(5000, 1);
    guest.send(TSO4, &frame);
    assert_eq!(wire.wait_for_sent(1), [(TSO4_HEADER, frame.clone())]);
    guest.offer(1, 70_000);
    wire.give_with(TSO4_HEADER, &frame);
    let received = guest.receive();
    assert_eq!((&received.header[..10], received.frame), (&TSO4[..10], frame));
}

#[test]
fn the_driver_gets_no_frame_that_it_would_have_to_finish() {
    let wire = Wire::with_offloads(Offloads::ALL, Offloads::ALL);
    let mut guest = Guest::without(wire.net(), F_GUEST_TSO4);
    guest.offer(3, 70_000);
    wire.give_with(TSO4_HEADER, &frame(5000, 1));
    let checksum_only = FrameHeader { segmentation: None, ..TSO4_HEADER };
    wire.give_with(checksum_only, &frame(500, 2));
    assert_eq!(guest.receive().frame, frame(500, 2));
    assert_eq!(guest.stats().received_malformed, 1);
    // Later it does not want checksums either.
    assert_eq!(guest.command(5, 0, &0u64.to_le_bytes()), 0);
    assert_eq!(wire.offloads_set(), Some(Offloads::NONE));
    wire.give_with(checksum_only, &frame(500, 3));
    wire.give_with(
        FrameHeader { checksum: Checksum::Valid, ..FrameHeader::default() },
        &frame(60, 4),
    );
    let received = guest.receive();
    assert_eq!((received.header[0], received.frame), (0, frame(60, 4)));
    assert_eq!(guest.stats().received_malformed, 2);
}

#[test]
fn the_driver_reads_address_link_and_mtu() {
    let mac: MacAddress = "02:11:22:33:44:55".parse().unwrap();
    let wire = Wire::default();
    let guest = Guest::unstarted(wire.net().mac(mac).mtu(9000).unwrap());
    assert_eq!(guest.config(0), mac.bytes());
    assert_eq!(guest.config(6), [1, 0], "the link is up");
    assert_eq!(guest.config(8), [0, 0], "no pairs without MQ");
    assert_eq!(guest.config(10), 9000u16.to_le_bytes());
    let offered = guest.driver.offered();
    assert_eq!(offered & (F_MAC | F_STATUS | F_MTU), F_MAC | F_STATUS | F_MTU);
    assert_eq!(guest.driver.offered() & F_MQ, 0);
    assert_eq!(Guest::unstarted(wire.net()).driver.offered() & F_MTU, 0);
}

#[test]
fn every_card_has_an_address_of_its_own() {
    let macs: Vec<_> = (0..100).map(|_| Wire::default().net().handle().mac()).collect();
    let different: std::collections::HashSet<_> = macs.iter().collect();
    assert_eq!(different.len(), 100);
}

#[test]
fn a_cable_that_is_pulled_and_put_back() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    guest.assert_works(&wire);
    guest.offer(1, 2048);
    guest.handle.set_link(false);
    guest.wait_for_link(false);
    guest.send(PLAIN, &frame(60, 1));
    wire.give(&frame(60, 2));
    guest.wait_for("both to be dropped", |stats| {
        (stats.sent_without_link, stats.received_without_link) == (1, 1)
    });
    guest.handle.set_link(true);
    guest.wait_for_link(true);
    // The driver is asked to announce itself, and says that it has.
    assert_eq!(guest.config(6), [3, 0]);
    assert_eq!(guest.command(3, 0, &[]), 0);
    assert_eq!(guest.config(6), [1, 0]);
    wire.give(&frame(60, 3));
    assert_eq!(guest.receive().frame, frame(60, 3));
    guest.assert_works(&wire);
}

/// Gives the frames that it is sent, once each, and tells when it is asked.
struct Slow {
    asked: Sender<()>,
    frames: Receiver<Vec<u8>>,
}

impl NetBackend for Slow {
    fn send(&mut self, _: &Frame<'_>) -> Result<(), BackendError> {
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        let _ = self.asked.send(());
        // Until the test is over.
        let frame = self.frames.recv().map_err(|_| BackendError::WouldBlock)?;
        room.put(FrameHeader::default(), &frame)
    }
}

#[test]
fn a_pause_loses_no_long_frame() {
    let ((asked, is_asked), (frames, to_give)) = (channel(), channel());
    let mut guest = Guest::new(Net::backend(Slow { asked, frames: to_give }));
    guest.offer(10, 1536);
    is_asked.recv_timeout(PATIENCE).unwrap();
    // The card has not taken all the buffers yet that it needs, and there are none in a pause.
    guest.driver.transport().begin_pause();
    frames.send(frame(9000, 1)).unwrap();
    drop(frames);
    assert!(guest.driver.transport().wait_paused(PATIENCE));
    assert_eq!(guest.driver.poll(RX), None);
    guest.driver.transport().resume();
    assert_eq!(guest.receive().frame, frame(9000, 1));
    assert_eq!(guest.stats().received_too_long, 0);
}

#[test]
fn a_pair_of_cards_with_a_cable_between() {
    let (one, other) = Net::pair().unwrap();
    let (mut one, mut other) = (Guest::new(one), Guest::new(other));
    for (seed, len) in (0..).zip([60, 1514, 65_550, 14]) {
        other.offer(1, 70_000);
        one.send(PLAIN, &frame(len, seed));
        assert_eq!(other.receive().frame, frame(len, seed));
        one.offer(1, 70_000);
        other.send(PLAIN, &frame(len, seed));
        assert_eq!(one.receive().frame, frame(len, seed));
    }
    one.offer(1, 2048);
    drop(other);
    one.wait_for_link(false);
}

#[test]
fn frames_over_a_stream_socket_have_their_length_before_them() {
    let (net, mut peer) = Peer::new();
    let mut guest = Guest::new(net);
    guest.offer(200, 1536);
    for (seed, len) in (0..).zip([14, 60, 1514, 9000, 65_550]) {
        guest.send(PLAIN, &frame(len, seed));
        assert_eq!(peer.take(), frame(len, seed));
        peer.give(&frame(len, seed));
        let received = guest.receive();
        assert_eq!((&received.header[..10], &received.frame), (&[0; 10][..], &frame(len, seed)));
        guest.offer(received.num_buffers().into(), 1536);
    }
}

#[test]
fn a_reset_loses_nothing_of_the_card() {
    let (net, mut peer) = Peer::new();
    let mut guest = Guest::new(net);
    let mac = guest.handle.mac();
    assert_eq!(guest.command(1, 1, &[2, 9, 9, 9, 9, 9]), 0);
    assert_eq!(guest.handle.mac().bytes(), [2, 9, 9, 9, 9, 9]);
    // Half a frame, and a reset before the other half.
    use std::io::Write;
    peer.0.write_all(&[0, 0, 0, 60, 0xff, 0xff]).unwrap();
    for round in 0..3 {
        guest.restart();
        assert_eq!((guest.handle.mac(), guest.config(0)), (mac, mac.bytes()));
        guest.send(PLAIN, &frame(60, round));
        assert_eq!(peer.take(), frame(60, round));
    }
    guest.offer(1, 2048);
    peer.0.write_all(&frame(60, 5)[2..]).unwrap();
    assert_eq!(guest.receive().frame, frame(60, 5));
}
