//! A stream socket whose other end misbehaves.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::time::Instant;

use net_common::*;
use sparkler_devices::virtio::net::Net;

fn guest() -> (Guest, Peer) {
    let (net, peer) = Peer::new();
    let mut guest = Guest::new(net);
    guest.offer(10, 2048);
    (guest, peer)
}

#[test]
fn a_length_of_four_gigabytes_ends_the_connection() {
    for length in [u32::MAX, 1 << 31, 65_555] {
        let (mut guest, mut peer) = guest();
        peer.give(&frame(60, 1));
        peer.0.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(guest.receive().frame, frame(60, 1));
        guest.wait_for_link(false);
        guest.send(PLAIN, &frame(60, 1));
        guest.wait_for("the drop", |stats| stats.sent_without_link == 1);
        // The peer sees it too.
        std::io::copy(&mut peer.0, &mut std::io::sink()).unwrap();
    }
}

#[test]
fn half_a_frame_and_then_nothing_holds_up_nobody() {
    let (mut guest, mut peer) = guest();
    for part in [&[0][..], &[0, 5], &[220], &frame(1500, 1)[..700]] {
        peer.0.write_all(part).unwrap();
        guest.send(PLAIN, &frame(60, 2));
        assert_eq!(peer.take(), frame(60, 2));
    }
    assert_eq!(guest.stats().received_frames, 0);
    peer.0.write_all(&frame(1500, 1)[700..]).unwrap();
    assert_eq!(guest.receive().frame, frame(1500, 1));
    peer.0.write_all(&[0, 0, 1, 0, 1, 2, 3]).unwrap();
    let begin = Instant::now();
    drop(guest);
    assert!(begin.elapsed().as_secs() < 5, "the end waited for the peer");
}

#[test]
fn frames_that_are_too_short_are_counted_and_passed_over() {
    let (mut guest, mut peer) = guest();
    for len in [0, 1, 13] {
        peer.give(&frame(len, 1));
    }
    peer.give(&frame(14, 2));
    assert_eq!(guest.receive().frame, frame(14, 2));
    assert_eq!(guest.stats().received_malformed, 3);
}

#[test]
fn frames_one_byte_at_a_time() {
    let (mut guest, mut peer) = guest();
    for seed in 0..5 {
        let bytes = [&60u32.to_be_bytes()[..], &frame(60, seed)].concat();
        for byte in bytes {
            peer.0.write_all(&[byte]).unwrap();
        }
    }
    for seed in 0..5 {
        assert_eq!(guest.receive().frame, frame(60, seed));
    }
}

#[test]
fn a_peer_that_does_not_read_keeps_the_guest_waiting_but_not_the_end() {
    let (mut guest, mut peer) = guest();
    let mut submitted = 0;
    while guest.stats().send_paused == 0 {
        if submitted - guest.stats().sent_frames < 100 {
            let seed = u8::try_from(submitted % 256).unwrap();
            guest.driver.submit(TX, &[&PLAIN, &frame(9000, seed)], &[]);
            submitted += 1;
        }
        while guest.driver.poll(TX).is_some() {}
    }
    // What was taken is bounded: by the socket, and by 64 KiB and a frame of the card's own.
    let taken = guest.stats().sent_bytes;
    assert!(taken < 4 << 20, "{taken}");
    // The other direction still works.
    peer.give(&frame(60, 1));
    assert_eq!(guest.receive().frame, frame(60, 1));
    for number in 0..submitted {
        assert_eq!(peer.take(), frame(9000, u8::try_from(number % 256).unwrap()));
    }
    guest.wait_for("the rest", |stats| stats.sent_frames == submitted);
    // And again, up to the end.
    while guest.stats().send_paused == 1 {
        while guest.driver.poll(TX).is_some() {}
        if submitted - guest.stats().sent_frames < 100 {
            guest.driver.submit(TX, &[&PLAIN, &frame(9000, 1)], &[]);
            submitted += 1;
        }
    }
    let begin = Instant::now();
    drop(guest);
    assert!(begin.elapsed().as_secs() < 5, "the end waited for the peer");
}

#[test]
fn without_a_link_nothing_waits_for_a_peer_that_does_not_read() {
    let (mut guest, mut peer) = guest();
    let mut waiting = 0;
    while guest.stats().send_paused == 0 {
        if waiting < 100 {
            guest.driver.submit(TX, &[&PLAIN, &frame(9000, 1)], &[]);
            waiting += 1;
        }
        while guest.driver.poll(TX).is_some() {
            waiting -= 1;
        }
    }
    guest.handle.set_link(false);
    for _ in 0..waiting {
        guest.driver.wait(TX);
    }
    // The driver's notifications are wanted again, too.
    guest.send(PLAIN, &frame(60, 1));
    guest.handle.set_link(true);
    for _ in 0..guest.stats().sent_frames {
        assert_eq!(peer.take(), frame(9000, 1));
    }
    guest.send(PLAIN, &frame(60, 2));
    assert_eq!(peer.take(), frame(60, 2));
}

#[test]
fn what_an_earlier_driver_sent_still_goes() {
    let (mut guest, mut peer) = guest();
    // One at a time, until it stays.
    let mut taken = true;
    while guest.stats().send_paused == 0 {
        if taken {
            guest.driver.submit(TX, &[&PLAIN, &frame(9000, 1)], &[]);
        }
        taken = guest.driver.poll(TX).is_some();
    }
    let sent = guest.stats().sent_frames;
    guest.restart();
    for _ in 0..sent {
        assert_eq!(peer.take(), frame(9000, 1));
    }
}

#[test]
fn a_peer_that_goes_away() {
    let (mut guest, mut peer) = guest();
    peer.give(&frame(60, 1));
    peer.0.write_all(&[0, 0]).unwrap();
    drop(peer);
    assert_eq!(guest.receive().frame, frame(60, 1));
    guest.wait_for_link(false);
    for _ in 0..10 {
        guest.send(PLAIN, &frame(60, 1));
    }
    guest.wait_for("the drops", |stats| stats.sent_without_link == 10);
}

#[test]
fn a_flood_without_buffers_is_held_back_by_the_socket() {
    const FRAMES: u32 = 3000;
    let nth = |number: u32| frame(1000, u8::try_from(number % 256).unwrap());
    let (net, mut peer) = Peer::new();
    let mut guest = Guest::new(net);
    let flood = std::thread::spawn(move || {
        for number in 0..FRAMES {
            peer.give(&nth(number));
        }
        peer
    });
    guest.wait_for("the pause", |stats| stats.receive_paused == 1);
    guest.send(PLAIN, &frame(60, 1));
    assert_eq!(guest.stats().received_frames, 0);
    guest.offer(200, 1536);
    for number in 0..FRAMES {
        assert_eq!(guest.receive().frame, nth(number), "frame {number}");
        guest.offer(1, 1536);
    }
    assert_eq!(flood.join().unwrap().take(), frame(60, 1));
}

#[test]
fn a_socket_with_a_path() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("network.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let mut guest = Guest::new(Net::stream(&path).unwrap());
    let mut peer = Peer(listener.accept().unwrap().0);
    guest.send(PLAIN, &frame(60, 1));
    assert_eq!(peer.take(), frame(60, 1));
}
