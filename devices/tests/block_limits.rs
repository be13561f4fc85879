//! What a driver cannot get around: a large request does not delay the end of a disk, and a rate limit
//! holds over resets and for every kind of request.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod block_common;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block_common::*;
use sparkler_devices::virtio::block::{Completion, Disk, Engine, Operation, RateLimit};
use sparkler_devices::virtio::mock::PATIENCE;

const GIB: u64 = 1 << 30;
/// A range of the largest size, 1 GiB; a request can hold 16 of them.
const LARGE: (u64, u32, u32) = (0, 1 << 21, 0);

/// Storage that ends every operation at once, after `before` was called.
struct AtOnce<F> {
    before: F,
    ended: VecDeque<Completion>,
}

impl<F: FnMut()> Engine for AtOnce<F> {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        (self.before)();
        let moved = match &operation {
            Operation::Read { data, .. } | Operation::Write { data, .. } => data.len(),
            _ => 0,
        };
        self.ended.push_back(Completion { tag, result: Ok(moved) });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.ended.pop_front()
    }
}

impl<F> std::fmt::Debug for AtOnce<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AtOnce")
    }
}

fn disk(before: impl FnMut() + Clone + Send + 'static) -> Disk {
    let engine = move || -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(AtOnce { before: before.clone(), ended: VecDeque::new() }))
    };
    Disk::with_engine(GIB, engine).unwrap()
}

/// A disk, busy with the first operation of a request for 16 GiB until it is sent a message.
fn busy() -> (Guest, Sender<()>, Arc<AtomicU32>) {
    let operations = Arc::new(AtomicU32::new(0));
    let (begun, wait_for_begun) = channel();
    let (go_on, wait_to_go_on) = channel();
    let wait_to_go_on = Arc::new(Mutex::new(wait_to_go_on));
    let counter = Arc::clone(&operations);
    let mut guest = Guest::new(disk(move || {
        if counter.fetch_add(1, Ordering::SeqCst) == 0 {
            begun.send(()).unwrap();
            wait_to_go_on.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        }
    }));
    let ranges: Vec<u8> = [LARGE; 16].iter().flat_map(range).collect();
    guest.offer(0, &[&header(WRITE_ZEROES, 0), &ranges], &[1]);
    guest.kick(0);
    wait_for_begun.recv_timeout(PATIENCE).unwrap();
    (guest, go_on, operations)
}

#[test]
fn the_end_does_not_wait_for_the_rest_of_a_request() {
    let (guest, go_on, operations) = busy();
    guest.driver.transport().begin_stop();
    go_on.send(()).unwrap();
    guest.driver.transport().stop();
    assert_eq!(operations.load(Ordering::SeqCst), 1, "of 512");
}

/// A disk that allows so much, and has just served what `first` asked it for.
fn limited(limit: RateLimit, first: impl FnOnce(&mut Guest)) -> (Guest, impl Fn() -> u64) {
    let disk = disk(|| {}).rate_limit(limit);
    let handle = disk.handle();
    let mut guest = Guest::new(disk);
    first(&mut guest);
    (guest, move || handle.stats().throttled)
}

/// The next request is held back, which takes no time to find out.
fn assert_held_back(guest: &mut Guest, throttled: impl Fn() -> u64) {
    let before = throttled();
    guest.offer(0, &[&header(IN, 0)], &[512, 1]);
    guest.kick(0);
    let begin = Instant::now();
    while throttled() == before {
        assert_eq!(guest.poll(0), None, "the limit does not hold");
        assert!(begin.elapsed() < PATIENCE, "neither held back nor served");
        std::thread::yield_now();
    }
}

#[test]
fn a_reset_forgives_no_debt() {
    let limit = RateLimit::new().bytes_per_second(4096);
    let (mut guest, throttled) = limited(limit, |guest| {
        assert_eq!(guest.read(0, 1 << 20).status, OK);
    });
    for _ in 0..3 {
        guest.restart();
        assert_held_back(&mut guest, &throttled);
    }
}

#[test]
fn zeroes_count_as_the_bytes_that_they_are() {
    let limit = RateLimit::new().bytes_per_second(16 << 20);
    let (mut guest, throttled) = limited(limit, |guest| {
        assert_eq!(guest.ranges(WRITE_ZEROES, &[LARGE; 2]), OK);
    });
    assert_held_back(&mut guest, throttled);
}

#[test]
fn discards_and_zeroes_count_as_the_operations_that_they_are() {
    for kind in [DISCARD, WRITE_ZEROES] {
        let limit = RateLimit::new().iops(5).burst(Duration::from_secs(1));
        let (mut guest, throttled) = limited(limit, |guest| {
            assert_eq!(guest.ranges(kind, &[LARGE; 16]), OK);
        });
        assert_held_back(&mut guest, throttled);
    }
}
