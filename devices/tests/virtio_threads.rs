//! What a thread for each live device takes: a thousand of them. One test: it measures the whole process.
//!
//! `cargo test --release -p sparkler-devices --test virtio_threads -- --nocapture` prints the figures.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs;
use std::time::Instant;

use sparkler_devices::virtio::mock::MockDriver;
use sparkler_devices::virtio::rng::Rng;

const DEVICES: u64 = 1000;
/// Of the process, and three to six times what was measured.
const MOST_KIB_FOR_EACH: u64 = 64;

/// The number that `name` has in one of the kernel's lists.
fn number(file: &str, name: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// In KiB: what is resident of this process, its page tables, and the kernel stacks of the whole host.
fn memory() -> [u64; 3] {
    [
        number("/proc/self/status", "VmRSS:"),
        number("/proc/self/status", "VmPTE:"),
        number("/proc/meminfo", "KernelStack:"),
    ]
}

fn threads() -> u64 {
    number("/proc/self/status", "Threads:")
}

#[test]
fn a_thousand_live_devices_have_a_small_thread_each_and_none_after_a_reset() {
    let mut drivers: Vec<_> =
        (0..DEVICES).map(|_| MockDriver::new(Box::new(Rng::new().unwrap()))).collect();
    // What a request touches in guest memory and in the heap: the second time, only the thread is new.
    for driver in &mut drivers {
        driver.start();
        assert_eq!(driver.request(0, &[], &[16]).len(), 16);
        driver.reset();
    }
    let (before, idle) = (memory(), threads());

    let begun = Instant::now();
    drivers.iter_mut().for_each(MockDriver::start);
    let started = begun.elapsed();
    assert_eq!(threads() - idle, DEVICES);
    for driver in &mut drivers {
        assert_eq!(driver.request(0, &[], &[16]).len(), 16);
    }
    let after = memory();
    let [resident, tables, stacks]: [u64; 3] =
        std::array::from_fn(|index| after[index].saturating_sub(before[index]));

    let begun = Instant::now();
    drivers.iter_mut().for_each(MockDriver::reset);
    let ended = begun.elapsed();
    assert_eq!(threads(), idle);
    println!(
        "{DEVICES} live devices: {started:.2?} to start, {ended:.2?} to end; for each {} KiB \
         resident, and in the kernel {} KiB of page tables and {} KiB of stack",
        resident as f64 / DEVICES as f64,
        tables as f64 / DEVICES as f64,
        stacks as f64 / DEVICES as f64,
    );
    assert!(resident < MOST_KIB_FOR_EACH * DEVICES, "{resident} KiB for {DEVICES} devices");
}
