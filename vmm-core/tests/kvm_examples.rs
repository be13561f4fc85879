//! The examples that the built-in guest is enough for run as they are.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

#[path = "../examples/custom_device.rs"]
mod custom_device;
#[path = "../examples/pool.rs"]
mod pool;
#[allow(dead_code)] // Its main reads the command line.
#[path = "../examples/switch.rs"]
mod switch;

#[test]
#[ignore = "needs /dev/kvm"]
fn custom_device_runs() {
    custom_device::main().unwrap();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn pool_runs() {
    pool::main().unwrap();
}

#[test]
#[ignore = "needs /dev/kvm"]
fn switch_runs() {
    switch::run(None).unwrap();
}
