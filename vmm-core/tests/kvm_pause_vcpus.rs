//! A paused machine's vCPUs use no time. One test: it looks at every vCPU of the process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::Duration;

use sparkler::{Outcome, VmState};

use crate::common::{Captured, guest};

/// The time for which each thread called `vcpu-…` was on a processor, in nanoseconds.
fn vcpu_times() -> HashMap<String, u64> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let is_vcpu = |task: &std::path::PathBuf| {
        fs::read_to_string(task.join("comm")).is_ok_and(|name| name.starts_with("vcpu-"))
    };
    let time = |task: std::path::PathBuf| {
        let times = fs::read_to_string(task.join("schedstat")).unwrap();
        let time = times.split(' ').next().unwrap().parse().unwrap();
        (task.display().to_string(), time)
    };
    tasks.filter(is_vcpu).map(time).collect()
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_paused_guest_does_not_execute_and_goes_on() {
    let captured = Captured::default();
    let running = guest("test=spin expect_vcpus=3")
        .vcpus(3)
        .console(captured.console())
        .build()
        .unwrap()
        .start()
        .unwrap();
    let handle = running.handle();
    while !captured.text().contains("spinning") {
        thread::yield_now();
    }
    let looks = || {
        let first = vcpu_times();
        thread::sleep(Duration::from_millis(60)); // A guest that spins would use it.
        (first, vcpu_times())
    };
    for _ in 0..3 {
        handle.pause().unwrap();
        handle.pause().unwrap();
        assert_eq!(handle.state(), VmState::Paused);
        let (first, second) = looks();
        assert_eq!(first.len(), 3);
        // A thread may still be on its way to sleep.
        let used = |task: &String| second[task] - first[task];
        assert!(first.keys().all(|task| used(task) < 5_000_000), "{first:?} {second:?}");
        handle.resume().unwrap();
        handle.resume().unwrap();
        assert_eq!(handle.state(), VmState::Running);
        let (first, second) = looks();
        assert_ne!(first, second);
    }
    handle.pause().unwrap();
    assert_eq!(running.wait_timeout(Duration::from_millis(1)), Ok(None));
    handle.stop();
    assert_eq!(running.wait(), Ok(Outcome::Stopped));
    assert_eq!(handle.state(), VmState::Ended);
}
