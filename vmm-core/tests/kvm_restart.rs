//! Resets, by the guest and by the host: the machine ends, or starts anew in its place.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::{Duration, Instant};

use sparkler::{
    ControlError, Initrd, MemoryBacking, MemorySize, Milestone, Outcome, ResetAction, RunningVm,
    Timeline, VmBuilder, VmState,
};

use crate::common::disks::{file, open};
use crate::common::{Captured, guest};

fn restarts(timeline: &Timeline) -> usize {
    let is_restart = |event: &&sparkler::Event| event.milestone == Milestone::Restarted;
    timeline.events().iter().filter(is_restart).count()
}

fn start(builder: VmBuilder) -> (RunningVm, Captured) {
    let captured = Captured::default();
    let builder = builder.on_reset(ResetAction::Restart).console(captured.console());
    (builder.build().unwrap().start().unwrap(), captured)
}

/// Waits until the guest has said `what` so many times.
fn wait_for(captured: &Captured, what: &str, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while captured.text().matches(what).count() < times {
        assert!(Instant::now() < deadline, "{times} times {what:?} in {}", captured.text());
        thread::sleep(Duration::from_millis(1)); // Not to take the processor from the guest.
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_guest_that_resets_starts_anew_by_either_register() {
    for end in ["reset", "acpi-reset"] {
        let backing = file(1 << 20);
        let disk = || open(backing.path(), sparkler::virtio::block::EngineKind::Sync);
        let work = "test=disk requests=50";
        let (running, captured) = start(guest(&format!("{work} end={end}")).vcpus(2).disk(disk()));
        // Each round checks that the disk holds what this round wrote, after a negotiation of its own.
        wait_for(&captured, "sparkler guest", 5);
        running.handle().stop();
        assert_eq!(running.wait(), Ok(Outcome::Stopped));
        assert!(restarts(&running.timeline()) >= 4, "{:?}", running.timeline());
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn all_vcpus_start_anew_wherever_they_are() {
    let (running, captured) = start(guest("test=spin expect_vcpus=4").vcpus(4));
    for round in 1..=10 {
        wait_for(&captured, "spinning", round);
        running.handle().reset().unwrap();
        assert_eq!(restarts(&running.timeline()), round);
    }
    wait_for(&captured, "spinning", 11);
    drop(running);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_is_zero_again() {
    /// Below its end, where the guest has nothing.
    const UNUSED: u64 = 15 << 20;
    let captured = Captured::default();
    let vm = guest("test=spin")
        .memory_backing(MemoryBacking::memfd())
        .on_reset(ResetAction::Restart)
        .console(captured.console())
        .build()
        .unwrap();
    let memory = fs::File::from(vm.memory_fd().unwrap().try_clone_to_owned().unwrap());
    let running = vm.start().unwrap();
    for round in 1..=3 {
        wait_for(&captured, "spinning", round);
        memory.write_all_at(&[0x5a; 8192], UNUSED).unwrap();
        running.handle().reset().unwrap();
        let mut now = [1; 8192];
        memory.read_exact_at(&mut now, UNUSED).unwrap();
        assert!(now.iter().all(|&byte| byte == 0));
    }
    running.handle().stop();
    assert_eq!(running.wait(), Ok(Outcome::Stopped));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_paused_machine_that_is_reset_stays_paused() {
    let (running, captured) = start(guest("test=spin expect_vcpus=2").vcpus(2));
    wait_for(&captured, "spinning", 1);
    let handle = running.handle();
    handle.pause().unwrap();
    handle.reset().unwrap();
    handle.reset().unwrap();
    assert_eq!(handle.state(), VmState::Paused);
    assert_eq!(restarts(&running.timeline()), 2);
    assert_eq!(captured.text().matches("spinning").count(), 1);
    handle.resume().unwrap();
    wait_for(&captured, "spinning", 2);
    handle.stop();
    assert_eq!(handle.reset(), Err(ControlError::Ended));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn without_a_restart_the_hosts_reset_ends_it() {
    let running = guest("test=hang").build().unwrap().start().unwrap();
    let handle = running.handle();
    handle.pause().unwrap();
    handle.reset().unwrap();
    assert_eq!(running.wait(), Ok(Outcome::Reset));
    assert_eq!(handle.reset(), Err(ControlError::Ended));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn resets_pauses_and_a_stop_at_the_same_time_all_return() {
    let (running, _) = start(guest("quiet end=reset").vcpus(2));
    thread::scope(|scope| {
        for number in 0..6 {
            let handle = running.handle();
            scope.spawn(move || {
                let call = || match number % 3 {
                    0 => handle.pause(),
                    1 => handle.resume(),
                    _ => handle.reset(),
                };
                while call() != Err(ControlError::Ended) {}
            });
        }
        thread::sleep(Duration::from_millis(300)); // Into the midst of it.
        running.handle().stop();
        assert_eq!(running.wait(), Ok(Outcome::Stopped));
    });
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_that_was_taken_at_once_is_so_again() {
    let backing = MemoryBacking::private().prefault(true);
    let (running, captured) = start(guest("end=hang").memory_backing(backing));
    for times in 1..3 {
        wait_for(&captured, "sparkler guest", times);
        assert_eq!(running.stats().memory_resident, 16 << 20);
        running.handle().reset().unwrap();
    }
}

const INITRD: u64 = 256 << 20;

/// Stops a machine that is loading its kernel and a large initrd again, as far as that can be told. How much of
/// its memory had been filled by then.
fn stop_while_loading() -> u64 {
    let file = tempfile::tempfile().unwrap();
    file.set_len(INITRD).unwrap();
    let initrd = Initrd::fd(file.into()).unwrap();
    let builder = guest("test=hang").memory(MemorySize::mib(384)).initrd(initrd);
    let (running, _captured) = start(builder);
    assert!(running.stats().memory_resident > INITRD);
    let handle = running.handle();
    // Again and again, so that the moment comes however busy the host is.
    let resets = thread::spawn(move || while handle.reset().is_ok() {});
    let deadline = Instant::now() + Duration::from_secs(60);
    // It falls while memory is cleared, and rises while it is filled.
    let (mut before, mut now) = (u64::MAX, u64::MAX);
    while !((INITRD / 16..INITRD / 4).contains(&now) && before < now) {
        assert!(Instant::now() < deadline, "{:?}", running.stats());
        (before, now) = (now, running.stats().memory_resident);
    }
    running.handle().stop();
    assert_eq!(running.wait(), Ok(Outcome::Stopped));
    resets.join().unwrap();
    running.stats().memory_resident
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_stop_does_not_wait_until_all_is_loaded_again() {
    // A busy host may take this thread's processor between the look and the stop.
    let filled: Vec<_> =
        (0..10).map(|_| stop_while_loading()).take_while(|all| *all > INITRD).collect();
    assert!(filled.len() < 10, "{filled:?}");
}
