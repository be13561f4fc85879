//! A driver that goes on while its requests are answered gets few interrupts, and yet hears of every
//! answer; one that waits for each answer gets its interrupt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod block_common;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use block_common::*;
use sparkler_devices::virtio::block::{Completion, Disk, Engine, Operation};
use sparkler_devices::virtio::mock::MockRing;
use vm_memory::GuestAddress;

const REQUESTS: u32 = 200;

/// A slow driver that has one request after the other ready, in the place of a disk's storage: each is
/// offered when the disk has answered the one before and finds the ring empty.
#[derive(Clone, Debug, Default)]
struct Driver(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    ring: Option<MockRing>,
    head: u16,
    left: u32,
    /// An operation was begun since the last look at the ring.
    busy: bool,
    ended: VecDeque<Completion>,
}

impl Engine for Driver {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let Operation::Read { data, .. } = operation else { panic!("{operation:?}") };
        // The driver is slow: faster ones need no help.
        std::thread::sleep(Duration::from_micros(100));
        let mut inner = self.0.lock().unwrap();
        inner.busy = true;
        inner.ended.push_back(Completion { tag, result: Ok(data.len()) });
    }

    fn submit(&mut self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        let idle = !std::mem::take(&mut inner.busy);
        if idle && inner.left > 0 {
            inner.left -= 1;
            let head = inner.head;
            // Its answer was taken already, so that it may be used again.
            inner.ring.as_mut().unwrap().offer(head);
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
    let header_at = guest.driver.buffer(16);
    let room: GuestAddress = guest.driver.buffer(513);
    let head = guest.offer_at(0, &[(header_at, 16, false), (room, 513, true)]);
    *driver.0.lock().unwrap() = Inner {
        ring: Some(guest.driver.ring(0).clone()),
        head,
        left: REQUESTS - 1,
        ..Inner::default()
    };
    guest.kick(0);

    // As a driver does, it looks for answers only when it is interrupted.
    let interrupt = guest.driver.interrupt().clone();
    let mut answers = 0;
    let mut interrupts = 0;
    while answers < REQUESTS {
        interrupts = interrupt
            .wait_until("answers", || Some(interrupt.count()).filter(|&count| count > interrupts));
        while let Some(used) = guest.driver.ring(0).take_used() {
            assert_eq!((used.id, used.len), (head.into(), 513));
            answers += 1;
        }
    }
    // Two of three, if the machine is so slow that each hold ends with its second answer.
    assert!(interrupts < u64::from(REQUESTS) * 2 / 3, "{interrupts}");
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
