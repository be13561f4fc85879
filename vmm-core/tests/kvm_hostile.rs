//! Guests that break every rule of virtio on purpose, next to one that keeps them. They look at what
//! the whole process has, so one runs at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::block::{Disk, EngineKind};
use sparkler::{Milestone, Outcome, RunningVm};

use crate::common::disks::{file, open};
use crate::common::holdings::{Holdings, resident_kib};
use crate::common::{Captured, drop_limit, guest};

const BYTES: u64 = 2 << 20;

static LOGGED: AtomicUsize = AtomicUsize::new(0);

struct CountingLogger;

impl log::Log for CountingLogger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LOGGED.fetch_add(1, Ordering::SeqCst);
        println!("{}", record.args());
    }

    fn flush(&self) {}
}

/// One test at a time, whose log lines are counted.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    static LOGGER: Once = Once::new();
    let guard = LOCK.lock().unwrap_or_else(PoisonError::into_inner);
    LOGGER.call_once(|| {
        log::set_logger(&CountingLogger).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    });
    LOGGED.store(0, Ordering::SeqCst);
    guard
}

struct Guest {
    running: RunningVm,
    captured: Captured,
}

impl Guest {
    fn start(cmdline: &str, disk: Disk) -> Self {
        let captured = Captured::default();
        let builder = guest(cmdline).vcpus(2).disk(disk).console(captured.console());
        Self { running: builder.build().unwrap().start().unwrap(), captured }
    }

    fn ends_well(self) {
        let outcome = self.running.wait().unwrap();
        drop(self.running);
        assert_eq!(outcome, Outcome::Exited(0), "{}", self.captured.text());
    }
}

/// Lets a guest be hostile, `times` times if the case heeds that, while a neighbour works. The device must
/// work afterwards, as the guest itself checks; the neighbour must not notice anything; and the
/// process must not hold more the longer it goes on.
fn survives(case: &str, times: u32, engine: EngineKind) {
    let _alone = alone();
    let files = [file(BYTES), file(BYTES)];
    let (before, resident) = (Holdings::now(), resident_kib());
    let disks = files.each_ref().map(|file| open(file.path(), engine));
    let [bad, good] = disks;
    let cmdline = format!("quiet test=hostile case={case} times={times} depth=8 wait=halt");
    let hostile = Guest::start(&cmdline, bad);
    let neighbour = Guest::start("quiet test=disk requests=500 depth=8 wait=halt", good);

    let mut most = Holdings::now();
    let ended = || hostile.running.timeline().at(Milestone::Ended).is_some();
    while !ended() {
        most = most.max(Holdings::now());
        thread::sleep(Duration::from_millis(5)); // Samples often enough, and leaves the CPUs to the guests.
    }
    hostile.ends_well();
    neighbour.ends_well();

    // Two machines have less than this together (six threads, and joined ones that the kernel still
    // lists); one leak a round would be far more.
    assert!(most.fds < before.fds + 60, "{most:?}, before: {before:?}");
    assert!(most.threads < before.threads + 40, "{most:?}, before: {before:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Holdings::now() != before && Instant::now() < deadline {
        thread::yield_now(); // A joined thread may stay in the kernel's list for a moment.
    }
    assert_eq!(Holdings::now(), before);
    let grown = resident_kib().saturating_sub(resident);
    assert!(grown < 8 << 10, "{grown} KiB more than before");
    assert!(LOGGED.load(Ordering::SeqCst) <= 2, "the guest can fill the log");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_thousand_resets_with_requests_in_flight() {
    survives("reset", 1000, EngineKind::Sync);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn resets_with_requests_in_flight_by_io_uring() {
    survives("reset", 200, EngineKind::IoUring);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn driver_ok_a_thousand_times() {
    survives("driver-ok", 1000, EngineKind::Sync);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn accesses_of_every_width_at_every_offset() {
    survives("registers", 1, EngineKind::IoUring);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn storms_of_notifications() {
    survives("notify", 1, EngineKind::IoUring);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn broken_rings_again_and_again() {
    survives("break", 300, EngineKind::Sync);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn descriptors_that_change_during_use() {
    survives("flip", 300, EngineKind::Sync);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn descriptors_that_change_during_use_by_io_uring() {
    survives("flip", 100, EngineKind::IoUring);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_stops_in_the_midst_of_it() {
    let _alone = alone();
    let file = file(BYTES);
    for case in ["reset", "driver-ok", "break", "flip"] {
        let disk = open(file.path(), EngineKind::IoUring);
        let cmdline = format!("quiet test=hostile case={case} times=1000000000 depth=8");
        let Guest { running, .. } = Guest::start(&cmdline, disk);
        while running.timeline().at(Milestone::Mark(2)).is_none() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(50)); // Some rounds; it does not end by itself.
        let begin = Instant::now();
        drop(running);
        assert!(begin.elapsed() < drop_limit(), "{case}: {:?}", begin.elapsed());
    }
}
