//! Many machines in one process leave nothing behind. One test: it counts what the whole process has.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use sparkler::{MemorySize, Outcome, RunningVm};

use crate::common::{Captured, guest};

const MEMORY: MemorySize = MemorySize::mib(16);

/// What a machine takes from its process.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    threads: usize,
    fds: usize,
    machines: usize,
    vcpu_mappings: usize,
}

fn holdings() -> Holdings {
    let fds: Vec<_> = fs::read_dir("/proc/self/fd").unwrap().map(|fd| fd.unwrap().path()).collect();
    let is_machine = |fd: &&PathBuf| {
        fs::read_link(fd).is_ok_and(|link| link.to_string_lossy().contains("kvm-vm"))
    };
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    Holdings {
        threads: fs::read_dir("/proc/self/task").unwrap().count(),
        fds: fds.len(),
        machines: fds.iter().filter(is_machine).count(),
        vcpu_mappings: maps.lines().filter(|line| line.contains("kvm-vcpu")).count(),
    }
}

/// Address space of the process in KiB, guest memory included. The allocator keeps some of what it had.
fn address_space() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmSize:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A joined thread may stay in the kernel's list for a moment: waits until it is gone.
fn assert_returns_to(before: &Holdings) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while holdings() != *before && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(holdings(), *before);
}

fn start(cmdline: &str) -> RunningVm {
    let console = Captured::default().console();
    guest(cmdline).memory(MEMORY).console(console).build().unwrap().start().unwrap()
}

fn drop_within_a_second(running: RunningVm) {
    let limit = common::drop_limit();
    let begin = Instant::now();
    drop(running);
    assert!(begin.elapsed() < limit, "{:?}", begin.elapsed());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn threads_fds_and_mappings_return_to_where_they_were() {
    let before = holdings();

    let (one_by_one, at_once) = if common::emulated() { (30, 10) } else { (300, 50) };
    for number in 0..one_by_one {
        let code = u8::try_from(number % 256).unwrap();
        let running = start(&format!("quiet code={code}"));
        assert_eq!(running.wait().unwrap(), Outcome::Exited(code));
    }
    assert_returns_to(&before);

    // Many at once, all with something else on their mind when they are dropped. The allocator and the
    // thread library keep what the first round made them take; of the second they take nothing more.
    let whiles =
        ["test=hang", "test=halt", "test=print bytes=100000000", "test=echo", "quiet code=3"];
    let many = || {
        let running: Vec<_> =
            (0..at_once).map(|number| start(whiles[number % whiles.len()])).collect();
        assert_eq!(holdings().machines, at_once);
        running.into_iter().for_each(drop_within_a_second);
        assert_returns_to(&before);
        address_space()
    };
    let first = many();
    let second = many();
    let grown = second.saturating_sub(first);
    assert!(grown < MEMORY.as_bytes() / 1024 * at_once as u64 / 2, "grew by {grown} KiB");

    // Dropped at once after the start, at any point of the guest's boot.
    for number in 0..50 {
        let running = start("test=hang");
        std::thread::sleep(Duration::from_micros(number * 40)); // Spreads the drops over the boot.
        drop_within_a_second(running);
    }
    // Built and never started.
    for _ in 0..20 {
        drop(guest("").memory(MEMORY).build().unwrap());
    }
    assert_returns_to(&before);
}
