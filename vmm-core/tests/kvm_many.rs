//! A thousand machines of 128 MiB at once in this process, one of them hostile. One test: it measures what
//! the whole process takes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::time::{Duration, Instant};

use sparkler::virtio::block::EngineKind;
use sparkler::{MemorySize, Milestone, Outcome, ResetAction, RunningVm, VmState};

use crate::common::disks::{file, open};
use crate::common::holdings::{Holdings, resident_kib};
use crate::common::{Captured, guest};

/// Written when the guest has booted.
const UP: u8 = 77;
/// Beside guest memory that the guest has touched, which is a part of it.
const MOST_KIB_FOR_EACH: u64 = 2048;

/// The test's own limit, which the library leaves alone: about eight descriptors a machine.
fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both calls take a valid pointer to a limit, ours.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

fn is_up(running: &RunningVm) -> bool {
    running.timeline().at(Milestone::Mark(UP)).is_some()
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5)); // The guests need the processors.
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_thousand_machines_at_once_and_a_hostile_one_among_them() {
    allow_many_descriptors();
    let count = if common::emulated() { 100 } else { 1000 };
    let idle = format!("quiet mark={UP} test=halt");
    let start = || {
        let builder = guest(&idle).memory(MemorySize::mib(128)).on_reset(ResetAction::Restart);
        builder.build().unwrap().start().unwrap()
    };
    drop(start()); // What the first takes once and for all.
    let (held, resident) = (Holdings::now(), resident_kib());

    let begun = Instant::now();
    let machines: Vec<_> = (0..count).map(|_| start()).collect();
    let created = begun.elapsed();
    wait_until("all are up", || machines.iter().all(is_up));
    let up = begun.elapsed();
    let each = resident_kib().saturating_sub(resident) / count;
    let fds = (Holdings::now().fds - held.fds) / usize::try_from(count).unwrap();
    println!(
        "{count} machines created in {created:.2?} ({:.0} a second), up after {up:.2?}; \
         {each} KiB resident and {fds} descriptors each",
        count as f64 / created.as_secs_f64()
    );
    assert!(each < MOST_KIB_FOR_EACH, "{each} KiB resident for each");

    // Others that do their worst meanwhile.
    for hostile in ["test=triple", "test=crash", "test=ports", "end=reset"] {
        guest(hostile).build().unwrap().start().unwrap().wait().unwrap();
    }
    for case in ["reset", "driver-ok", "registers", "break", "flip"] {
        let backing = file(1 << 20);
        let captured = Captured::default();
        let builder = guest(&format!("test=hostile case={case} times=20 requests=20"))
            .vcpus(2)
            .disk(open(backing.path(), EngineKind::Sync))
            .console(captured.console());
        let outcome = builder.build().unwrap().start().unwrap().wait();
        assert_eq!(outcome, Ok(Outcome::Exited(0)), "{case}: {}", captured.text());
    }

    // To the rest, nothing has happened: they are there, and a few show that they can do it all again.
    assert!(machines.iter().all(|running| running.handle().state() == VmState::Running));
    for running in machines.iter().step_by(50) {
        let ups = || {
            let timeline = running.timeline();
            let marks = timeline.events().iter();
            marks.filter(|event| event.milestone == Milestone::Mark(UP)).count()
        };
        running.handle().pause().unwrap();
        running.handle().reset().unwrap();
        running.handle().resume().unwrap();
        wait_until("it is up again", || ups() == 2);
    }
    let begun = Instant::now();
    machines.iter().for_each(|running| running.handle().stop());
    assert!(machines.iter().all(|running| running.wait() == Ok(Outcome::Stopped)));
    drop(machines);
    println!("stopped and dropped in {:.2?}", begun.elapsed());
    wait_until("all is given back", || Holdings::now() == held);
}
