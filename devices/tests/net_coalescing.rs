//! A driver that goes on while its frames are sent gets few interrupts and need not notify, and yet hears
//! of every frame; one that waits for each gets its interrupt.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod net_common;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use net_common::*;
use sparkler_devices::virtio::mock::{MockInterrupt, MockRing};
use sparkler_devices::virtio::net::{BackendError, Frame, Net, NetBackend, Room};
use sparkler_devices::vm_memory::Bytes;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

const FRAMES: u32 = 400;
const LEN: u32 = 72; // With its header.

/// What a frame takes the driver, and an interrupt: longer than what cards do nothing about.
const FRAME: Duration = Duration::from_micros(100);
const INTERRUPT: Duration = Duration::from_millis(1);
/// The most frames that are offered between two looks of the card at its ring.
const MOST: u32 = 8;

/// A slow driver that has one frame after the other ready, in the place of what is at the other end of
/// the cable: the card asks it for a descriptor before and after each wait. It offers what it has had time
/// for since, and never notifies.
#[derive(Clone, Default)]
struct Driver(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    ring: Option<MockRing>,
    interrupt: MockInterrupt,
    interrupts: u64,
    heads: VecDeque<u16>,
    left: u32,
    sent: u32,
    last_offer: Option<Instant>,
    /// What it offers when all frames were sent: the ring, and the head of the chain.
    at_the_end: Option<(MockRing, u16)>,
}

impl Inner {
    fn go_on(&mut self) {
        let Some(ring) = &mut self.ring else { return };
        let now = self.interrupt.count();
        if std::mem::replace(&mut self.interrupts, now) != now {
            std::thread::sleep(INTERRUPT); // The driver has something else to do.
            self.last_offer = None;
        }
        let passed = self.last_offer.map_or(FRAME, |last| last.elapsed());
        let count = u32::try_from(passed.as_micros() / FRAME.as_micros()).unwrap();
        let count = count.min(MOST).min(self.left);
        if count > 0 {
            self.last_offer = Some(Instant::now());
        }
        self.left -= count;
        for _ in 0..count {
            // It was given back long ago.
            let head = self.heads.pop_front().unwrap();
            self.heads.push_back(head);
            ring.offer(head);
        }
        if self.sent == FRAMES
            && let Some((mut ring, head)) = self.at_the_end.take()
        {
            ring.offer(head);
        }
    }
}

impl NetBackend for Driver {
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
    /// Gives it frames to send on `queue`.
    fn begin(&self, guest: &mut Guest, queue: u16, at_the_end: Option<(MockRing, u16)>) {
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
        *self.0.lock().unwrap() = Inner {
            ring: Some(ring.clone()),
            interrupt: guest.driver.interrupt().clone(),
            heads,
            left: FRAMES,
            at_the_end,
            ..Inner::default()
        };
        guest.driver.notify(queue);
    }

    /// As a driver does, it looks for frames that were sent only when it is interrupted. How often it was.
    fn hear_of_all(&self, guest: &mut Guest, queue: u16) -> u64 {
        let interrupt = guest.driver.interrupt().clone();
        let before = self.0.lock().unwrap().interrupts;
        let (mut frames, mut interrupts) = (0, before);
        while frames < FRAMES {
            interrupts = interrupt.wait_until("frames to be sent", || {
                Some(interrupt.count()).filter(|&count| count > interrupts)
            });
            while guest.driver.ring(queue).take_used().is_some() {
                frames += 1;
            }
            // It offers more when the card asks, and the card sleeps until then.
            guest.driver.notify(queue);
        }
        interrupts - before
    }
}

#[test]
fn a_driver_that_goes_on_gets_few_interrupts_and_hears_of_every_frame() {
    let driver = Driver::default();
    let mut guest = Guest::new(Net::backend(driver.clone()));
    driver.begin(&mut guest, TX, None);
    let interrupts = driver.hear_of_all(&mut guest, TX);
    assert!(interrupts < u64::from(FRAMES) / 2, "{interrupts}");
    assert_eq!(guest.stats().sent_frames, u64::from(FRAMES));
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
    driver.begin(&mut guest, TX_2, at_the_end);
    driver.hear_of_all(&mut guest, TX_2);
}

#[test]
fn a_driver_that_waits_for_each_frame_gets_an_interrupt_for_each() {
    let wire = Wire::default();
    let mut guest = Guest::new(wire.net());
    let interrupt = guest.driver.interrupt().clone();
    for number in 1..=u64::from(FRAMES) {
        guest.driver.submit(TX, &[&PLAIN, &frame(60, 0)], &[]);
        interrupt
            .wait_until("the frame to be sent", || (interrupt.count() == number).then_some(()));
        assert!(guest.driver.poll(TX).is_some());
    }
    assert_eq!(interrupt.count(), u64::from(FRAMES));
}
