//! Stopping from other threads, in any order, any number of times.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::{DeviceError, Session, VirtioDevice};
use sparkler::{BusDevice, Milestone, Outcome, RunError, RunningVm};

use crate::common::guest;

#[test]
#[ignore = "needs /dev/kvm"]
fn eight_threads_stop_and_wait_for_one_machine_and_agree() {
    let running = guest("test=hang").vcpus(4).build().unwrap().start().unwrap();
    let together = Barrier::new(8);
    thread::scope(|scope| {
        for number in 0..8 {
            let (running, together) = (&running, &together);
            scope.spawn(move || {
                together.wait();
                if number % 2 == 0 {
                    running.handle().stop();
                    running.handle().stop();
                }
                assert_eq!(running.wait().unwrap(), Outcome::Stopped);
            });
        }
    });
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_stop_handle_outlives_its_machine() {
    let running = guest("quiet code=5").build().unwrap().start().unwrap();
    let stop = running.handle();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(5));
    stop.stop();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(5), "the end stays what it was");
    drop(running);
    stop.stop();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn sixty_four_vcpus_stop_within_a_second() {
    let running = guest("test=hang").vcpus(64).build().unwrap().start().unwrap();
    let limit = common::drop_limit();
    let begin = Instant::now();
    running.handle().stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    assert!(begin.elapsed() < limit, "{:?}", begin.elapsed());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_signal_to_the_process_does_not_reach_the_guests_threads() {
    // Any signal to this process is handled on the process's own threads; here the default action of
    // SIGURG and SIGWINCH is to be ignored, and the machine must not notice.
    let running = guest("test=hang").build().unwrap().start().unwrap();
    for _ in 0..1000 {
        // SAFETY: both signals are ignored by default, and this is our own process.
        unsafe {
            libc::kill(libc::getpid(), libc::SIGURG);
            libc::kill(libc::getpid(), libc::SIGWINCH);
        }
    }
    running.handle().stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_timeline_tells_the_life_in_order() {
    let running = guest("quiet code=0").build().unwrap().start().unwrap();
    running.wait().unwrap();
    let timeline = running.timeline();
    let order = [
        Milestone::MemoryMapped,
        Milestone::Built,
        Milestone::Started,
        Milestone::GuestEntered,
        Milestone::Mark(1),
        Milestone::Mark(2),
        Milestone::Ended,
        Milestone::TornDown,
    ];
    let times =
        order.map(|milestone| timeline.at(milestone).unwrap_or_else(|| panic!("no {milestone}")));
    assert!(times.is_sorted(), "{timeline:?}");
    assert!(times[7] < Duration::from_secs(10));
}

/// A device that comes to own its own machine, waits for it and drops it.
struct Owner(Mutex<Receiver<RunningVm>>, Sender<Result<Outcome, RunError>>);

impl Owner {
    fn act(&self) {
        // Later calls find nobody who sends.
        if let Ok(running) = self.0.lock().unwrap().recv() {
            self.1.send(running.wait()).unwrap();
            drop(running);
        }
    }
}

impl BusDevice for Owner {
    fn read(&self, _offset: u64, _data: &mut [u8]) {}
    fn write(&self, _offset: u64, _data: &[u8]) {
        self.act();
    }
}

impl VirtioDevice for Owner {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.act();
        while session.wait(&[], None)? {}
        Ok(())
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn one_of_its_own_threads_cannot_wait_for_it_and_can_drop_it() {
    for on_vcpu in [true, false] {
        let ((send_machine, machine), (answers, answer)) = (channel(), channel());
        let owner = Owner(Mutex::new(machine), answers);
        let builder = match on_vcpu {
            true => guest("test=ports").vcpus(2).port_device(0x222..=0x222, owner),
            false => guest("test=rng").vcpus(2).device(owner),
        };
        send_machine.send(builder.build().unwrap().start().unwrap()).unwrap();
        let answer = || answer.recv_timeout(Duration::from_secs(60));
        assert_eq!(answer(), Ok(Err(RunError::OwnThread)));
        // The device has gone, and so the machine.
        assert_eq!(answer(), Err(RecvTimeoutError::Disconnected));
    }
}
