//! Pausing and resuming; waiting with a limit and by a descriptor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use sparkler::virtio::block::EngineKind;
use sparkler::virtio::{DeviceError, Session, VirtioDevice};
use sparkler::{Console, ControlError, Milestone, Outcome, RunningVm, VmHandle, VmState};

use crate::common::disks::{file, open};
use crate::common::{Captured, guest};

fn ended(running: &RunningVm) -> bool {
    let mut poll =
        libc::pollfd { fd: running.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one initialized entry, which is ours during the call.
    unsafe { libc::poll(&mut poll, 1, 0) == 1 }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_disk_stands_still_with_nothing_in_flight_and_loses_nothing() {
    for engine in [EngineKind::Sync, EngineKind::IoUring] {
        let backing = file(4 << 20);
        let disk = open(backing.path(), engine);
        let of_disk = disk.handle();
        let captured = Captured::default();
        let running = guest("test=disk requests=3000 depth=32 seed=7")
            .disk(disk)
            .console(captured.console())
            .build()
            .unwrap()
            .start()
            .unwrap();
        let handle = running.handle();
        let mut pauses = 0;
        while handle.pause().is_ok() {
            pauses += 1;
            let before = (of_disk.stats(), fs::read(backing.path()).unwrap());
            assert!(before == (of_disk.stats(), fs::read(backing.path()).unwrap()));
            if handle.resume().is_err() {
                break;
            }
            thread::sleep(Duration::from_millis(5)); // So that something happens in between.
        }
        assert_eq!(running.wait(), Ok(Outcome::Exited(0)), "{engine:?}: {}", captured.text());
        assert!(pauses > 0);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_was_printed_is_written_when_the_pause_begins() {
    let captured = Captured::default();
    let builder = guest("test=print bytes=100000000").console(captured.console());
    let running = builder.build().unwrap().start().unwrap();
    let handle = running.handle();
    for _ in 0..10 {
        handle.pause().unwrap();
        let written = captured.text().len();
        thread::sleep(Duration::from_millis(10)); // What was still on its way would arrive.
        assert_eq!(captured.text().len(), written);
        handle.resume().unwrap();
        while captured.text().len() == written {
            assert_eq!(running.wait_timeout(Duration::from_millis(1)), Ok(None));
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn neither_a_blocked_writer_nor_waiting_input_holds_up_a_pause() {
    let (_full, mut writer) = std::io::pipe().unwrap();
    writer.write_all(&[b'x'; 65536]).unwrap(); // As much as a pipe holds.
    let (reader, mut input) = std::io::pipe().unwrap();
    input.write_all(&[b'x'; 4096]).unwrap();
    let builder = guest("mark=5 test=echo").console(Console::pollable(reader, writer));
    let running = builder.build().unwrap().start().unwrap();
    // Its banner is printed and cannot be written.
    while running.timeline().at(Milestone::Mark(5)).is_none() {
        assert_eq!(running.wait_timeout(Duration::from_millis(1)), Ok(None));
    }
    let handle = running.handle();
    handle.pause().unwrap();
    handle.resume().unwrap();
    handle.stop();
    assert_eq!(running.wait(), Ok(Outcome::Stopped));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn once_it_has_ended_each_call_says_so() {
    let running = guest("quiet code=6").build().unwrap().start().unwrap();
    let handle = running.handle();
    assert_eq!(running.wait_timeout(Duration::MAX), Ok(Some(Outcome::Exited(6))));
    assert!(ended(&running));
    for _ in 0..2 {
        assert_eq!(handle.pause(), Err(ControlError::Ended));
        assert_eq!(handle.resume(), Err(ControlError::Ended));
        assert_eq!(handle.reset(), Err(ControlError::Ended));
        handle.stop();
        assert_eq!(handle.state(), VmState::Ended);
        assert_eq!(running.wait_timeout(Duration::ZERO), Ok(Some(Outcome::Exited(6))));
    }
    drop(running);
    assert_eq!(handle.pause(), Err(ControlError::Ended));
    assert_eq!(handle.reset(), Err(ControlError::Ended));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_descriptor_gets_readable_at_the_end() {
    let running = guest("test=hang").build().unwrap().start().unwrap();
    assert!(!ended(&running));
    running.handle().pause().unwrap();
    assert!(!ended(&running));
    let handle = running.handle();
    let stopper = thread::spawn(move || handle.stop());
    let mut poll =
        libc::pollfd { fd: running.as_fd().as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one initialized entry, which is ours during the call.
    assert_eq!(unsafe { libc::poll(&mut poll, 1, 30_000) }, 1);
    stopper.join().unwrap();
    assert_eq!(running.wait_timeout(Duration::ZERO), Ok(Some(Outcome::Stopped)));
    assert!(ended(&running));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn pauses_resumes_and_a_stop_at_the_same_time_all_return() {
    let running = guest("test=hang").vcpus(2).build().unwrap().start().unwrap();
    thread::scope(|scope| {
        for number in 0..6 {
            let handle = running.handle();
            scope.spawn(move || {
                for _ in 0..200 {
                    let result = if number % 2 == 0 { handle.pause() } else { handle.resume() };
                    if result == Err(ControlError::Ended) {
                        return;
                    }
                }
            });
        }
        thread::sleep(Duration::from_millis(20)); // Into the midst of it.
        running.handle().stop();
        assert_eq!(running.wait(), Ok(Outcome::Stopped));
    });
}

/// An entropy device that tries to pause its own machine.
struct Presumptuous {
    handle: Receiver<VmHandle>,
    answers: Sender<Result<(), ControlError>>,
}

impl VirtioDevice for Presumptuous {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let handle = self.handle.recv().unwrap();
        for answer in [handle.pause(), handle.resume()] {
            self.answers.send(answer).unwrap();
        }
        while session.wait(&[], None)? {}
        Ok(())
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_device_cannot_pause_its_own_machine() {
    let ((send_handle, handle), (answers, answer)) = (channel(), channel());
    let device = Presumptuous { handle, answers };
    let running = guest("test=rng").device(device).build().unwrap().start().unwrap();
    send_handle.send(running.handle()).unwrap();
    for _ in 0..2 {
        assert_eq!(answer.recv().unwrap(), Err(ControlError::OwnThread));
    }
}
