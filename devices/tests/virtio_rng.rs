//! The entropy device.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::collections::HashSet;

use sparkler_devices::virtio::mock::MockDriver;
use sparkler_devices::virtio::rng::Rng;
use virtio_bindings::bindings::virtio_mmio as reg;

fn driver() -> MockDriver {
    let mut driver = MockDriver::new(Box::new(Rng::new().unwrap()));
    driver.start();
    driver
}

#[test]
fn fills_buffers_with_bytes_that_differ_each_time() {
    let mut driver = driver();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 4);
    let answers: HashSet<_> = (0..100).map(|_| driver.request(0, &[], &[3, 13])).collect();
    assert_eq!(answers.len(), 100);
    assert!(answers.iter().all(|bytes| bytes.len() == 16));
}

#[test]
fn gives_at_most_64_kib_at_once_and_the_rest_of_the_buffer_stays() {
    let mut driver = driver();
    let answer = driver.request(0, &[], &[1000, 1 << 20]);
    assert_eq!(answer.len(), 64 << 10);
    // A byte is zero once in 256 times.
    assert!(answer.iter().filter(|byte| **byte == 0).count() < 1000);
}

#[test]
fn a_request_without_room_gets_nothing() {
    let mut driver = driver();
    assert_eq!(driver.request(0, &[b"please"], &[]), b"");
    assert_eq!(driver.request(0, &[b"please"], &[8]).len(), 8);
}

#[test]
fn works_after_resets() {
    let mut driver = driver();
    for _ in 0..20 {
        driver.submit(0, &[], &[4096]);
        driver.reset();
        driver.start();
        assert_eq!(driver.request(0, &[], &[32]).len(), 32);
    }
}
