//! Hostile drivers, again and again: threads, file descriptors and memory stay what they were. Alone in
//! its file, for it counts those of the whole process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod virtio_common;

use std::fs;

use virtio_common::{TestDevice, scenarios};

macro_rules! list {
    ($($name:ident),* $(,)?) => {
        &[$(scenarios::$name),*]
    };
}

const ALL: &[fn(&mut sparkler_devices::virtio::mock::MockDriver)] = for_each_scenario!(list);

fn count(directory: &str) -> usize {
    fs::read_dir(directory).unwrap().count()
}

/// Resident memory in KiB.
fn resident() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
}

#[test]
fn threads_file_descriptors_and_memory_stay_flat() {
    let mut driver = TestDevice::live();
    let round = |driver: &mut _| {
        for scenario in ALL {
            let driver: &mut sparkler_devices::virtio::mock::MockDriver = driver;
            scenario(driver);
            driver.wait_for_needs_reset();
            driver.reset();
            driver.start();
            for _ in 0..4 {
                driver.submit(0, &[b"hold"], &[4]);
            }
            driver.reset();
            driver.start();
        }
    };
    let now = || (count("/proc/self/task"), count("/proc/self/fd"));
    // What is touched for the first time is not growth: the guest's memory is, and the allocator's.
    for _ in 0..5 {
        round(&mut driver);
    }
    let (before, resident_before) = (now(), resident());
    for _ in 0..100 {
        round(&mut driver);
    }
    assert_eq!(now(), before);
    let growth = resident().saturating_sub(resident_before);
    assert!(growth < 4096, "{growth} KiB more after 1900 failures and 3800 resets");
}
