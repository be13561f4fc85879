//! A busy driver whose exits are slow is looked at instead of notifying, and yet hears of every frame;
//! one that waits for each gets its interrupt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use net_common::*;
use sparkler_devices::virtio::Waker;
use sparkler_devices::virtio::mock::{MockInterrupt, MockRing};
use sparkler_devices::virtio::net::{BackendError, Frame, Net, NetBackend, Room};
use sparkler_devices::vm_memory::Bytes;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const LEN: u32 = 72; // With its header.

/// What a frame takes the driver, and a notification with its interrupt.
const FRAME: Duration = Duration::from_micros(50);
const EXITS: Duration = Duration::from_micros(50);
/// The most frames that are offered between two looks of the card at its ring.
const MOST: u32 = 8;
/// The driver ends when it was looked at so often, or fails when it was not after so many frames.
const LOOKS: u32 = 20;
const FRAMES: u32 = 100_000;

/// A busy driver with slow exits, in the place of what is at the other end of the cable: the card asks it
/// for a descriptor before and after each wait, and it does then what it had time for. So no other thread
/// takes part in what the card measures.
#[derive(Clone, Default)]
struct Driver(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    ring: Option<MockRing>,
    interrupt: MockInterrupt,
    waker: Option<Waker>,
    heads: VecDeque<u16>,
    offered: u32,
    sent: u32,
    /// How many of them it was told of, by these interrupts.
    told: u32,
    interrupts: u64,
    /// How often the card was to look by itself, with frames that the driver was not told of.
    looks: u32,
    last_offer: Option<Instant>,
    /// What it offers at its end: the ring, and the head of the chain.
    at_the_end: Option<(MockRing, u16)>,
}

impl Inner {
    fn go_on(&mut self) {
        let Some(ring) = self.ring.as_mut().filter(|_| self.looks < LOOKS) else { return };
        let interrupts = self.interrupt.count();
        if std::mem::replace(&mut self.interrupts, interrupts) != interrupts {
            while ring.take_used().is_some() {
                self.told += 1;
            }
        }
        // The card asks to be notified of the next one.
        let notifies = u32::from(ring.available_event()) == self.offered % (1 << 16);
        self.looks += u32::from(self.told < self.sent && !notifies);
        if self.looks == LOOKS {
            if let Some((mut ring, head)) = self.at_the_end.take() {
                ring.offer(head);
            }
            return;
        }
        let mut count = 0;
        if self.offered == self.sent && notifies {
            let begin = Instant::now();
            while begin.elapsed() < FRAME + EXITS {} // Busy, as a vCPU that exits.
            count = 1;
        } else if let Some(passed) = self.last_offer.map(|last| last.elapsed()) {
            count = u32::try_from(passed.as_micros() / FRAME.as_micros()).unwrap().min(MOST);
        }
        count = count.min(MOST - (self.offered - self.sent));
        for _ in 0..count {
            // It was given back long ago.
            let head = self.heads.pop_front().unwrap();
            self.heads.push_back(head);
            ring.offer(head);
            self.offered += 1;
            self.last_offer = Some(Instant::now());
        }
        assert!(self.offered < FRAMES, "it was never looked at");
        if count > 0 && notifies {
            self.waker.as_ref().unwrap().wake();
        }
    }
}

impl NetBackend for Driver {
    fn start(&mut self, waker: Waker) -> io::Result<()> {
        self.0.lock().unwrap().waker = Some(waker);
        Ok(())
    }

    fn send(&mut self, _: &Frame<'_>) -> Result<(), BackendError> {
        self.0.lock().unwrap().sent += 1;
        Ok(())
    }

    fn receive(&mut self, _: &mut Room<'_>) -> Result<(), BackendError> {
        Err(BackendError::WouldBlock)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.lock().unwrap().go_on();
        None
    }
}

impl Driver {
    /// Lets it send frames on `queue`, to its end, and waits until the driver was told of all.
    fn run(&self, guest: &mut Guest, queue: u16, at_the_end: Option<(MockRing, u16)>) {
        let frame = guest.driver.buffer(LEN as usize);
        // Set up before the first is offered, as the card may look at any time.
        let ring = guest.driver.ring(queue);
        let heads = (0..2 * MOST)
            .map(|_| {
                let head = ring.take_descriptor();
                ring.set_descriptor(head, frame, LEN, 0, 0);
                head
            })
            .collect();
        let ring = ring.clone();
        let interrupt = guest.driver.interrupt().clone();
        {
            let mut inner = self.0.lock().unwrap();
            inner.interrupts = interrupt.count();
            (inner.ring, inner.interrupt, inner.heads) = (Some(ring), interrupt.clone(), heads);
            inner.at_the_end = at_the_end;
        }
        guest.driver.notify(queue);

        wait_for("the end", || (self.0.lock().unwrap().looks == LOOKS).then_some(()));
        let interrupts = self.0.lock().unwrap().interrupts;
        interrupt.wait_until("the last frames to be told of", || {
            (interrupt.count() > interrupts).then_some(())
        });
        let mut inner = self.0.lock().unwrap();
        let ring = inner.ring.as_mut().unwrap();
        let told = std::iter::from_fn(|| ring.take_used()).count();
        assert_eq!(u32::try_from(told).unwrap() + inner.told, inner.sent);
    }
}

#[test]
fn a_busy_driver_with_slow_exits_is_looked_at_and_hears_of_every_frame() {
    let driver = Driver::default();
    let mut guest = Guest::new(Net::backend(driver.clone()));
    driver.run(&mut guest, TX, None);
}

#[test]
fn a_driver_hears_of_every_frame_of_a_pair_that_it_leaves() {
    const TX_2: u16 = 3;
    const CONTROL_2: u16 = 4;
    let driver = Driver::default();
    let backends: Vec<Box<dyn NetBackend>> =
        vec![Box::new(Wire::default()), Box::new(driver.clone())];
    let mut guest = Guest::new(Net::backends(backends).unwrap());
    assert_eq!(guest.command_on(CONTROL_2, 4, 0, &2u16.to_le_bytes()), 0);
    let (command, answer) = (guest.driver.buffer(4), guest.driver.buffer(1));
    guest.driver.memory().write_slice(&[4, 0, 1, 0], command).unwrap();
    let ring = guest.driver.ring(CONTROL_2);
    let (head, next) = (ring.take_descriptor(), ring.take_descriptor());
    ring.set_descriptor(head, command, 4, NEXT, next);
    ring.set_descriptor(next, answer, 1, WRITE, 0);
    // No interrupt for this one, which would tell of the frames as well.
    ring.set_used_event(1000);
    let at_the_end = Some((ring.clone(), head));
    driver.run(&mut guest, TX_2, at_the_end);
}

#[test]
fn a_driver_that_waits_for_each_frame_gets_an_interrupt_for_each() {
    const FRAMES: u64 = 1000;
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    let interrupt = guest.driver.interrupt().clone();
    for number in 1..=FRAMES {
        guest.driver.submit(TX, &[&PLAIN, &frame(60, 0)], &[]);
        interrupt
            .wait_until("the frame to be sent", || (interrupt.count() == number).then_some(()));
        assert!(guest.driver.poll(TX).is_some());
    }
    assert_eq!(interrupt.count(), FRAMES);
}
