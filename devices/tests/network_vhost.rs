//! A card on a tap whose frames the host's kernel moves: what the driver of a guest can do to it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use net_common::tap::*;
use net_common::*;
use sparkler_devices::virtio::mock::{MockDriver, PATIENCE};
use sparkler_devices::virtio::net::{Net, NetDevice, NetError, NetStats, RateLimit};
use vm_memory::{Bytes, GuestAddress};

fn tap() -> Net {
    for (device, module) in [("/dev/net/tun", "tun"), ("/dev/vhost-net", "vhost_net")] {
        if !Path::new(device).exists() {
            assert!(Command::new("modprobe").arg(module).status().unwrap().success());
        }
    }
    Net::tap("spark0").unwrap().vhost().unwrap()
}

/// The two ends of a card on such a tap.
fn connect(net: Net) -> (Host, Guest) {
    (Host::new("spark0"), Guest::new(net))
}

/// Frames pass, of a guest with buffers for them.
fn assert_passes(guest: &mut Guest, host: &Host) {
    guest.offer(100, 1536);
    assert_works(guest, host);
}

fn pause(guest: &Guest) {
    let transport = guest.driver.transport();
    transport.begin_pause();
    assert!(transport.wait_paused(PATIENCE));
}

/// Pulls the cable out, and waits until the driver was told.
fn unplug(guest: &Guest) {
    guest.handle.set_link(false);
    let told = || (guest.driver.read(0x60) & 2 != 0).then_some(());
    guest.driver.interrupt().wait_until("the link to be down", told);
}

/// That nothing happens needs some time to be seen.
fn look_on(milliseconds: u64) {
    std::thread::sleep(Duration::from_millis(milliseconds));
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn frames_pass_uncounted_in_every_session() {
    let _alone = isolate();
    let (host, mut guest) = connect(tap());
    for _ in 0..3 {
        assert_passes(&mut guest, &host);
        guest.restart();
    }
    // Without mergeable buffers.
    guest.driver.reset();
    let offered = guest.driver.offered();
    guest.driver.start_with(offered & !F_MRG_RXBUF);
    guest.offer(100, 70_000);
    assert_works(&mut guest, &host);
    assert_eq!(guest.stats(), NetStats::default(), "it was not the kernel that moved the frames");
    let (header, frame) = tcp(20_000);
    guest.send(with_count(header), &frame);
    let (taken, bytes) = host.take(is_tcp);
    assert_eq!((taken[0], taken[1], bytes), (1, 1, frame.clone()));
    host.give(&header, &frame);
    let received = loop {
        let received = guest.receive();
        guest.offer(1, 70_000);
        if is_tcp(&received.frame) {
            break received;
        }
    };
    assert_eq!((received.header[1], received.frame), (1, frame));
    drop(guest);
    assert!(!exists("spark0"));
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn guest_memory_is_left_alone_after_a_reset_and_while_paused() {
    let _alone = isolate();
    let (host, mut guest) = connect(tap());
    assert_passes(&mut guest, &host);
    let used = guest.driver.ring(RX).used();
    let index = |guest: &Guest| guest.driver.memory().read_obj::<u16>(GuestAddress(used.0 + 2));
    let give_frames = || (0..20).for_each(|seed| host.give(&[0; 10], &experimental(100, seed)));

    pause(&guest);
    let before = index(&guest).unwrap();
    give_frames();
    look_on(300);
    assert_eq!(
        index(&guest).unwrap(),
        before,
        "the kernel wrote to the memory of a paused machine"
    );
    guest.driver.transport().resume();
    for seed in 0..20 {
        let frame = experimental(100, seed);
        receive(&mut guest, |received| received == frame);
    }

    let before = index(&guest).unwrap();
    guest.driver.set_status(0);
    give_frames();
    look_on(300);
    assert_eq!(index(&guest).unwrap(), before, "the kernel wrote to a ring that it has no more");
    guest.restart();
    assert_passes(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn the_kernel_stands_still_at_whatever_moment_a_pause_comes() {
    let _alone = isolate();
    let (host, mut guest) = connect(tap());
    assert_passes(&mut guest, &host);
    let frame = [&PLAIN[..], &experimental(60, 1)].concat();
    for round in 0..100 {
        guest.driver.submit(TX, &[&frame], &[]);
        // The card's thread is busy then, in one thing or another.
        (0..round).for_each(|_| guest.driver.notify(CONTROL));
        pause(&guest);
        let used = [RX, TX].map(|queue| guest.driver.ring(queue).used_index());
        guest.driver.submit(TX, &[&frame], &[]);
        guest.driver.notify(TX);
        host.give(&[0; 10], &experimental(100, 1));
        look_on(20);
        assert_eq!(
            [RX, TX].map(|queue| guest.driver.ring(queue).used_index()),
            used,
            "the kernel wrote to the memory of a paused machine, round {round}"
        );
        guest.driver.transport().resume();
        guest.driver.wait(TX);
        guest.driver.wait(TX);
        receive(&mut guest, |received| received == experimental(100, 1));
    }
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn a_driver_of_one_pair_gives_commands_to_a_card_of_two() {
    let _alone = isolate();
    let net = tap().queues(2).unwrap();
    let host = Host::new("spark0");
    let mut guest = Guest::without(net, F_MQ);
    for promiscuous in [1, 0, 1] {
        // Only the notification is to wake the card's thread: what did before must be over, and no frame come.
        look_on(300);
        assert_eq!(guest.command(0, 0, &[promiscuous]), 0);
    }
    assert_passes(&mut guest, &host);
    guest.restart();
    assert_eq!(guest.command_on(4, 4, 0, &[2, 0]), 0);
    assert_passes(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn queues_come_and_go_and_so_does_the_link() {
    let _alone = isolate();
    let (host, mut guest) = connect(tap().queues(2).unwrap());
    let control = 4;
    for pairs in [2, 1, 2, 1, 1] {
        assert_eq!(guest.command_on(control, 4, 0, &[pairs, 0]), 0);
    }
    assert_eq!(guest.command_on(control, 4, 0, &[3, 0]), 1);
    assert_passes(&mut guest, &host);
    // To the second queue as well.
    assert_eq!(guest.command_on(control, 4, 0, &[2, 0]), 0);
    let frame = experimental(300, 9);
    guest.driver.submit(3, &[&PLAIN, &frame], &[]);
    guest.driver.wait(3);
    host.take(|taken| taken == frame);
    assert_eq!(guest.command_on(control, 4, 0, &[1, 0]), 0);

    guest.driver.write(0x64, 3); // The interrupt is acknowledged, and comes for the link next.
    unplug(&guest);
    let frame = experimental(60, 33);
    guest.driver.submit(TX, &[&PLAIN, &frame], &[]);
    look_on(300);
    assert!(guest.driver.poll(TX).is_none());
    guest.handle.set_link(true);
    guest.driver.wait(TX);
    host.take(|taken| taken == frame);
    assert_works(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn a_driver_that_breaks_the_rules_needs_a_reset_and_works_after_it() {
    type Break = fn(&mut MockDriver);
    let breaks: [(&str, Break); 5] = [
        ("the available index jumps", |driver| {
            driver.ring(TX).set_available_index(30_000);
            driver.notify(TX);
        }),
        ("a frame is outside RAM", |driver| {
            let head = driver.ring(TX).take_descriptor();
            driver.ring(TX).set_descriptor(head, GuestAddress(1 << 60), 100, 0, 0);
            driver.ring(TX).offer(head);
            driver.notify(TX);
        }),
        ("a head is outside the table", |driver| {
            driver.ring(TX).offer(60_000);
            driver.notify(TX);
        }),
        ("a chain has no end", |driver| {
            let buffer = driver.buffer(100);
            let head = driver.ring(TX).take_descriptor();
            driver.ring(TX).set_descriptor(head, buffer, 100, 1, head);
            driver.ring(TX).offer(head);
            driver.notify(TX);
        }),
        ("a frame is to be written", |driver| {
            driver.submit(TX, &[], &[1500]);
        }),
    ];
    let _alone = isolate();
    let (host, mut guest) = connect(tap());
    for (what, break_rules) in breaks {
        assert_passes(&mut guest, &host);
        break_rules(&mut guest.driver);
        // Each may be one more error, of which the next session must hear nothing.
        (0..100).for_each(|_| guest.driver.notify(TX));
        println!("{what}");
        guest.driver.wait_for_needs_reset();
        guest.restart();
    }
    assert_passes(&mut guest, &host);
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn a_tap_that_is_deleted_leaves_a_card_without_link() {
    let _alone = isolate();
    let (host, mut guest) = connect(tap());
    assert_passes(&mut guest, &host);
    ip("link del spark0");
    // It is noticed by what cannot be sent.
    guest.driver.submit(TX, &[&PLAIN, &experimental(60, 1)], &[]);
    guest.wait_for_link(false);
    assert_works_without_link(&mut guest);
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn so_does_one_that_is_deleted_while_the_guest_sends() {
    let _alone = isolate();
    for _ in 0..5 {
        let mut guest = Guest::new(tap());
        let frame = [&PLAIN[..], &experimental(60, 1)].concat();
        let deletes = std::thread::spawn(|| ip("link del spark0"));
        let mut on_their_way = 0;
        // The kernel does not give back what it could not send.
        wait_for("the link to be down", || {
            while guest.driver.poll(TX).is_some() {
                on_their_way -= 1;
            }
            if on_their_way < 200 {
                guest.driver.submit(TX, &[&frame], &[]);
                on_their_way += 1;
            }
            assert!(!guest.driver.needs_reset());
            (!guest.link()).then_some(())
        });
        deletes.join().unwrap();
        assert_works_without_link(&mut guest);
    }
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn so_does_one_that_is_deleted_while_the_guest_sends_nothing() {
    type Delete = fn(&mut Guest);
    let deletions: [(&str, Delete); 3] = [
        ("before a reset", |guest| {
            ip("link del spark0");
            guest.restart();
        }),
        ("in a pause", |guest| {
            pause(guest);
            ip("link del spark0");
            guest.driver.transport().resume();
        }),
        ("while the cable is out", |guest| {
            unplug(guest);
            ip("link del spark0");
            guest.handle.set_link(true);
        }),
    ];
    let _alone = isolate();
    for (when, delete) in deletions {
        println!("{when}");
        let (host, mut guest) = connect(tap());
        assert_passes(&mut guest, &host);
        delete(&mut guest);
        guest.wait_for_link(false);
        assert_works_without_link(&mut guest);
    }
}

/// It answers commands, in this session and in the next.
fn assert_works_without_link(guest: &mut Guest) {
    assert_eq!(guest.command(0, 0, &[1]), 0);
    guest.restart();
    assert_eq!(guest.command(0, 0, &[1]), 0);
    assert!(!guest.link() && !guest.driver.needs_reset());
}

#[test]
#[ignore = "needs root and /dev/vhost-net"]
fn what_cannot_be_is_said() {
    let _alone = isolate();
    let limit = RateLimit::new().packets_per_second(10);
    for net in
        [tap().rate_limit(limit), Net::tap("spark1").unwrap().rate_limit(limit).vhost().unwrap()]
    {
        let refusal = sparkler_devices::virtio::VirtioDevice::check(&NetDevice::new(net));
        assert_eq!(
            refusal.unwrap_err().to_string(),
            "a card that vhost-net serves can have no rate limit: set one of the two"
        );
    }
    let (one, _other) = Net::pair().unwrap();
    assert!(matches!(one.vhost(), Err(NetError::VhostNoTap)));
}
