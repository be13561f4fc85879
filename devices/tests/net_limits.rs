//! The rate limit of a card: it holds in both directions, over resets, and loses nothing.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::time::{Duration, Instant};

use net_common::*;
use sparkler_devices::virtio::net::{Net, NetBackend, RateLimit};

/// Whether a second passes while so much goes through as is allowed in two, with a burst of one.
fn assert_takes_a_second(limit: RateLimit, len: usize, frames: u8) {
    let wire = Wire::default();
    let limit = limit.burst(Duration::from_secs(1));
    let mut guest = Guest::new(wire.net().rate_limit(limit));
    let begin = Instant::now();
    for seed in 0..frames {
        guest.send(PLAIN, &frame(len, seed));
    }
    let sending = begin.elapsed();
    guest.offer(100, 2048);
    let begin = Instant::now();
    for seed in 0..frames {
        wire.give(&frame(len, seed));
    }
    for seed in 0..frames {
        assert_eq!(guest.receive().frame, frame(len, seed));
    }
    let receiving = begin.elapsed();
    let least = Duration::from_millis(900);
    assert!(sending > least && receiving > least, "{sending:?}, {receiving:?}");
    assert!(guest.stats().throttled >= 2);
    let sent: Vec<_> = wire.sent().into_iter().map(|(_, frame)| frame).collect();
    assert_eq!(sent, (0..frames).map(|seed| frame(len, seed)).collect::<Vec<_>>());
}

#[test]
fn packets_a_second() {
    assert_takes_a_second(RateLimit::new().packets_per_second(40), 60, 80);
}

#[test]
fn bytes_a_second() {
    assert_takes_a_second(RateLimit::new().bytes_per_second(40_000), 1000, 80);
}

#[test]
fn a_reset_forgives_no_debt_and_does_not_wait() {
    let wire = Wire::default();
    let limit = RateLimit::new().bytes_per_second(1000);
    let mut guest = Guest::new(wire.net().rate_limit(limit));
    guest.send(PLAIN, &frame(60_000, 1)); // A minute's worth.
    for round in 1..4 {
        guest.restart();
        guest.driver.submit(TX, &[&PLAIN, &frame(60, 2)], &[]);
        guest.wait_for("the limit", |stats| stats.throttled == round);
        assert_eq!(guest.driver.poll(TX), None);
    }
    // The other direction has a limit of its own.
    guest.offer(1, 2048);
    wire.give(&frame(60, 3));
    assert_eq!(guest.receive().frame, frame(60, 3));
}

/// A card with two pairs of queues, both in use, and six frames a second; its second wire is returned
/// second.
fn two_pairs() -> (Guest, Wire, Wire) {
    let (one, other) = (Wire::default(), Wire::default());
    let backends: Vec<Box<dyn NetBackend>> = vec![Box::new(one.clone()), Box::new(other.clone())];
    let limit = RateLimit::new().packets_per_second(6);
    let mut guest = Guest::new(Net::backends(backends).unwrap().rate_limit(limit));
    assert_eq!(guest.command_on(4, 4, 0, &2u16.to_le_bytes()), 0);
    (guest, one, other)
}

/// Longer than the rate limit lets a frame wait.
fn let_the_limit_pass() {
    std::thread::sleep(Duration::from_millis(500)); // Nothing happens then, which is the point.
}

#[test]
fn a_pair_that_is_held_and_then_not_used_costs_nothing() {
    let (mut guest, wire, _) = two_pairs();
    for seed in 0..10 {
        guest.driver.submit(TX + 2, &[&PLAIN, &frame(60, seed)], &[]);
    }
    guest.wait_for("the limit", |stats| stats.throttled > 0);
    assert_eq!(guest.command_on(4, 4, 0, &1u16.to_le_bytes()), 0);
    let_the_limit_pass();
    wire.assert_idle();
    guest.assert_works(&wire);
}

#[test]
fn a_pair_that_is_held_and_then_cut_costs_nothing() {
    let (mut guest, wire, other) = two_pairs();
    for seed in 0..10 {
        guest.driver.submit(RX + 2, &[], &[2048]);
        other.give(&frame(60, seed));
    }
    guest.wait_for("the limit", |stats| stats.throttled > 0);
    other.cut();
    guest.driver.submit(TX + 2, &[&PLAIN, &frame(60, 1)], &[]);
    guest.driver.wait(TX + 2);
    let_the_limit_pass();
    wire.assert_idle();
    guest.assert_works(&wire);
}
