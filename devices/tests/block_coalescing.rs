//! A driver that goes on while its requests are answered gets few interrupts, and yet hears of every
//! answer; one that waits for each answer gets its interrupt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod block_common;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use block_common::*;
use sparkler_devices::virtio::block::{Completion, Disk, Engine, Operation};
use sparkler_devices::virtio::mock::{MockInterrupt, MockRing};

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const REQUESTS: u32 = 400;

/// What a request takes the driver, and an interrupt: longer than what disks do nothing about.
const REQUEST: Duration = Duration::from_micros(100);
const INTERRUPT: Duration = Duration::from_millis(1);
/// The most requests that are offered between two looks of the disk at its ring.
const MOST: u32 = 8;

/// A slow driver that has one request after the other ready, in the place of a disk's storage. What it
/// had time for, it offers when the disk has answered all and finds the ring empty; one at least, so
/// that the disk never waits for more in vain.
#[derive(Clone, Debug, Default)]
struct Driver(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    ring: Option<MockRing>,
    interrupt: MockInterrupt,
    interrupts: u64,
    heads: VecDeque<u16>,
    left: u32,
    last_offer: Option<Instant>,
    /// An operation was begun since the last look at the ring.
    busy: bool,
    ended: VecDeque<Completion>,
}

impl Inner {
    fn go_on(&mut self) {
        let now = self.interrupt.count();
        let count = if std::mem::replace(&mut self.interrupts, now) == now {
            let passed = self.last_offer.map_or(Duration::ZERO, |last| last.elapsed());
            u32::try_from(passed.as_micros() / REQUEST.as_micros()).unwrap().clamp(1, MOST)
        } else {
            std::thread::sleep(INTERRUPT); // The driver has something else to do.
            1
        };
        let count = count.min(self.left);
        self.left -= count;
        for _ in 0..count {
            // It was answered long ago.
            let head = self.heads.pop_front().unwrap();
            self.heads.push_back(head);
            self.ring.as_mut().unwrap().offer(head);
        }
        self.last_offer = Some(Instant::now());
    }
}

impl Engine for Driver {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let Operation::Read { data, .. } = operation else { panic!("{operation:?}") };
        let mut inner = self.0.lock().unwrap();
        inner.busy = true;
        inner.ended.push_back(Completion { tag, result: Ok(data.len()) });
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        if !std::mem::take(&mut inner.busy) && inner.left > 0 {
            inner.go_on();
        }
        Ok(())
    }

    fn complete(&mut self) -> Option<Completion> {
        self.0.lock().unwrap().ended.pop_front()
    }
}

#[test]
fn a_driver_that_goes_on_gets_few_interrupts_and_hears_of_every_answer() {
    let driver = Driver::default();
    let engine = driver.clone();
    let disk = Disk::with_engine(1 << 20, move || Ok(Box::new(engine.clone()))).unwrap();
    let mut guest = Guest::new(disk);
    let (header_at, room) = (guest.driver.buffer(16), guest.driver.buffer(513));
    // Set up before the first is offered, as the disk may look at any time.
    let ring = guest.driver.ring(0);
    let heads: VecDeque<u16> = (0..2 * MOST)
        .map(|_| {
            let (head, next) = (ring.take_descriptor(), ring.take_descriptor());
            ring.set_descriptor(head, header_at, 16, NEXT, next);
            ring.set_descriptor(next, room, 513, WRITE, 0);
            head
        })
        .collect();
    let interrupt = guest.driver.interrupt().clone();
    *driver.0.lock().unwrap() = Inner {
        ring: Some(guest.driver.ring(0).clone()),
        interrupt: interrupt.clone(),
        heads,
        left: REQUESTS,
        ..Inner::default()
    };
    guest.driver.notify(0);

    // As a driver does, it looks for answers only when it is interrupted.
    let (mut answers, mut interrupts) = (0, 0);
    while answers < REQUESTS {
        interrupts = interrupt
            .wait_until("answers", || Some(interrupt.count()).filter(|&count| count > interrupts));
        while let Some(used) = guest.driver.ring(0).take_used() {
            assert_eq!(used.len, 513);
            answers += 1;
        }
    }
    assert!(interrupts < u64::from(REQUESTS) / 2, "{interrupts}");
}

#[test]
fn a_driver_that_waits_for_each_answer_gets_an_interrupt_for_each() {
    let mut guest = Guest::new(Storage::new(vec![0; 4096]).disk());
    let interrupt = guest.driver.interrupt().clone();
    for request in 1..=u64::from(REQUESTS) {
        guest.offer(0, &[&header(IN, 0)], &[512, 1]);
        guest.kick(0);
        interrupt.wait_until("an answer", || (interrupt.count() == request).then_some(()));
        assert_eq!(guest.poll(0).unwrap().status, OK);
    }
    assert_eq!(interrupt.count(), u64::from(REQUESTS));
}
