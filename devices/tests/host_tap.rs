//! A card on a tap of this host's kernel, in a network namespace of the test's own.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use net_common::tap::*;
use net_common::*;
use sparkler_devices::virtio::net::{Net, NetError};
use vm_memory::GuestAddress;

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_is_made_carries_frames_and_goes_with_the_card() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    assert!(exists("spark0"));
    let host = Host::new("spark0");
    let mut guest = Guest::new(net);
    guest.offer(100, 1536);
    assert_works(&mut guest, &host);
    guest.restart();
    guest.offer(100, 1536);
    assert_works(&mut guest, &host);
    drop(guest);
    assert!(!exists("spark0"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_that_was_made_before_stays_and_is_for_one_card() {
    let _alone = isolate();
    ip("tuntap add dev spark0 mode tap");
    ip("link set spark0 up");
    let net = Net::tap("spark0").unwrap();
    assert!(matches!(Net::tap("spark0"), Err(NetError::TapBusy { name }) if name == "spark0"));
    let error = Net::tap("spark0").unwrap_err().to_string();
    assert_eq!(error, "the tap spark0 is in use by another machine or process");
    drop(net);
    let error = Net::tap("spark0").unwrap().queues(2).unwrap_err();
    assert!(matches!(&error, NetError::TapKind { queues: 2, .. }), "{error}");
    let error = Net::tap("lo").unwrap_err();
    assert!(matches!(error, NetError::TapKind { .. }), "{error}");
    let mut guest = Guest::new(Net::tap("spark0").unwrap());
    guest.offer(100, 1536);
    assert_works(&mut guest, &Host::new("spark0"));
    drop(guest);
    assert!(exists("spark0"));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn what_is_to_be_cut_up_passes_whole_in_both_directions() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::new(net);
    guest.offer(200, 1536);
    let (header, frame) = tcp(20_000);
    guest.send(with_count(header), &frame);
    let (taken, bytes) = host.take(is_tcp);
    assert_eq!((taken[0], taken[1], &taken[4..10]), (1, 1, &header[4..10]));
    assert_eq!(bytes, frame);
    host.give(&header, &frame);
    let received = receive(&mut guest, is_tcp);
    assert_eq!((&received.header[..2], &received.header[4..10]), (&header[..2], &header[4..10]));
    assert_eq!((received.num_buffers(), received.frame), (14, frame));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn the_kernel_cuts_up_what_the_driver_cannot_take() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::without(net, F_GUEST_TSO4);
    guest.offer(200, 1536);
    let (header, frame) = tcp(2500);
    guest.send(PLAIN, &experimental(60, 1)); // Then what was negotiated is in force.
    host.give(&header, &frame);
    for len in [1000, 1000, 500] {
        let received = receive(&mut guest, is_tcp);
        assert_eq!((received.header[1], received.frame.len()), (0, TCP4 + len));
    }
    // Then not even checksums.
    guest.driver.reset();
    let offered = guest.driver.offered();
    guest.driver.start_with(offered & (F_MRG_RXBUF | F_MAC));
    guest.offer(200, 1536);
    guest.send(PLAIN, &experimental(60, 1));
    host.give(&header, &frame);
    for _ in 0..3 {
        let received = receive(&mut guest, is_tcp);
        assert_eq!(received.header[..10], [0; 10]);
        assert_ne!(received.frame[50..52], [0, 0], "the checksum");
    }
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_driver_that_wants_one_kind_of_udp_segments_gets_a_card() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::without(net, F_GUEST_USO6);
    guest.offer(100, 1536);
    assert_works(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn buffers_in_more_pieces_than_a_call_takes_do_not_cost_the_tap() {
    const PIECES: u16 = 30;
    const WRITE: u16 = 2;
    const NEXT: u16 = 1;
    const INDIRECT: u16 = 4;
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    ip("link set spark0 mtu 9000");
    let host = Host::new("spark0");
    let mut guest = Guest::new(net);
    // The queue is full of chains, all together too short for the first frame.
    for _ in 0..256 {
        let bytes = guest.driver.buffer(PIECES.into());
        let table = guest.driver.buffer(16 * usize::from(PIECES));
        let ring = guest.driver.ring(RX);
        for piece in 0..PIECES {
            let flags = if piece + 1 < PIECES { WRITE | NEXT } else { WRITE };
            let at = GuestAddress(bytes.0 + u64::from(piece));
            ring.set_descriptor_at(table, piece, at, 1, flags, piece + 1);
        }
        let head = ring.take_descriptor();
        ring.set_descriptor(head, table, 16 * u32::from(PIECES), INDIRECT, 0);
        ring.offer(head);
    }
    guest.driver.notify(RX);
    host.give(&[0; 10], &experimental(9000, 1));
    wait_for("the drop", || {
        // What the kernel's own frames took is offered again.
        while let Some(used) = guest.driver.ring(RX).take_used() {
            guest.driver.ring(RX).offer(used.id.try_into().unwrap());
            guest.driver.notify(RX);
        }
        (guest.stats().received_too_long == 1).then_some(())
    });
    let before = guest.stats().received_frames;
    host.give(&[0; 10], &experimental(1500, 2));
    guest.wait_for("the next frame", |stats| stats.received_frames > before);
    assert!(guest.link());
    guest.restart();
    guest.offer(100, 1536);
    assert_works(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn frames_are_counted_while_the_interface_is_down() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::new(net);
    guest.offer(100, 1536);
    ip("link set spark0 down");
    guest.send(PLAIN, &experimental(60, 1));
    guest.wait_for("the refusal", |stats| stats.sent_refused == 1);
    ip("link set spark0 up");
    assert_works(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn a_tap_that_is_deleted_leaves_a_card_without_link() {
    let _alone = isolate();
    let mut guest = Guest::new(Net::tap("spark0").unwrap().queues(2).unwrap());
    guest.offer(100, 1536);
    assert_works(&mut guest, &Host::new("spark0"));
    ip("link del spark0");
    guest.wait_for_link(false);
    assert_eq!(guest.command_on(4, 4, 0, &[2, 0]), 0);
    guest.driver.submit(2, &[], &[1536]);
    guest.wait_for_link(false);
    let before = cpu_time();
    let begin = Instant::now();
    for seed in 0..20 {
        guest.send(PLAIN, &experimental(60, seed));
        std::thread::sleep(Duration::from_millis(20)); // Idle, if nothing spins.
    }
    let spent = cpu_time() - before;
    assert!(spent < begin.elapsed() / 2, "{spent:?} of CPU time while idle");
    assert!(guest.stats().sent_without_link >= 20);
    guest.restart();
    assert!(!guest.link());
    guest.send(PLAIN, &experimental(60, 1));
}

/// Of the whole process: other tests run in it, but none for long.
fn cpu_time() -> Duration {
    // SAFETY: the kernel fills a `timespec`.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec.try_into().unwrap(), time.tv_nsec.try_into().unwrap())
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn several_queues_are_attached_as_the_driver_uses_them() {
    let _alone = isolate();
    let net = Net::tap("spark0").unwrap().queues(2).unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::new(net);
    assert_eq!(guest.config(8), [2, 0]);
    guest.offer(100, 1536);
    assert_works(&mut guest, &host);
    for pairs in [2u8, 1, 2] {
        assert_eq!(guest.command_on(4, 4, 0, &[pairs, 0]), 0);
        for (queue, used) in [(1, true), (3, pairs == 2)] {
            let frame = experimental(60, queue + pairs);
            guest.driver.submit(queue.into(), &[&PLAIN, &frame], &[]);
            if used {
                guest.driver.wait(queue.into());
                host.take(|taken| taken == frame);
            }
        }
    }
    assert_eq!([[0, 0], [3, 0], [0, 1]].map(|n| guest.command_on(4, 4, 0, &n)), [1, 1, 1]);
    // Frames of different flows come through both queues.
    for _ in 0..100 {
        guest.driver.submit(2, &[], &[1536]);
    }
    for flow in 0..64 {
        let (_, mut frame) = tcp(10);
        frame[36] = flow;
        host.give(&[0; 10], &frame);
    }
    wait_for("frames in the second queue", || guest.driver.poll(2));
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn open_descriptors_serve_as_well() {
    let _alone = isolate();
    let queue = tap_fd("spark0", libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
    let net = Net::tap_fds(vec![queue]).unwrap();
    ip("link set spark0 up");
    let mut guest = Guest::new(net);
    guest.offer(100, 1536);
    assert_works(&mut guest, &Host::new("spark0"));
    let without_header = tap_fd("spark1", libc::IFF_TAP | libc::IFF_NO_PI);
    assert!(matches!(Net::tap_fds(vec![without_header]), Err(NetError::TapFd { .. })));
    assert!(matches!(Net::tap_fds(vec![]), Err(NetError::Queues { queues: 0, .. })));
}

fn tap_fd(name: &str, flags: i32) -> OwnedFd {
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: TUNSETIFF gets a `struct ifreq`, of which zeroes are a valid one.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_flags = flags.try_into().unwrap();
        assert_eq!(libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request), 0);
    }
    tun.into()
}

#[test]
#[ignore = "needs root and /dev/net/tun"]
fn without_the_right_to_it_the_error_says_what_to_do() {
    let _alone = isolate();
    ip("tuntap add dev spark0 mode tap user 1");
    let error = std::thread::spawn(|| {
        // SAFETY: the raw call changes the user of this thread alone, which ends soon.
        assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) }, 0);
        Net::tap("spark0").unwrap_err()
    })
    .join()
    .unwrap();
    // Depending on who may open /dev/net/tun.
    let known = matches!(error, NetError::TunPermission | NetError::TapPermission { .. });
    assert!(known, "{error}");
    let text = error.to_string();
    assert!(text.contains("chmod 666") || text.contains("user USER"), "{text}");
}
