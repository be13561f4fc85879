//! A panic in a device or console of the caller's own is an error of that machine, and of no other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use sparkler::virtio::{ConfigSpace, DeviceError, Session, VirtioDevice};
use sparkler::{Console, Outcome, RunError, VmBuilder};

use crate::common::guest;

/// Both ends of a console, and an entropy device: each panics when it is used.
struct Panicking;

impl Read for Panicking {
    fn read(&mut self, _buffer: &mut [u8]) -> io::Result<usize> {
        panic!("the reader")
    }
}

impl Write for Panicking {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        panic!("the writer")
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl VirtioDevice for Panicking {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn run(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        panic!("the {}", "device")
    }
}

/// A disk whose configuration space panics.
struct PanickingConfig;

impl VirtioDevice for PanickingConfig {
    fn device_type(&self) -> u32 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(PanickingConfig)
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        while session.wait(&[], None)? {}
        Ok(())
    }
}

impl ConfigSpace for PanickingConfig {
    fn read(&self, _offset: u64, _data: &mut [u8]) {
        panic!("the configuration")
    }
}

fn panics(builder: VmBuilder, thread: &str, message: &str) {
    let expected = RunError::Panicked { thread: thread.to_owned(), message: message.to_owned() };
    let running = builder.build().unwrap().start().unwrap();
    assert_eq!(running.wait(), Err(expected.clone()));
    assert_eq!(running.wait(), Err(expected), "the same answer again");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_panic_ends_its_machine_with_an_error_and_no_other_machine() {
    let (input, _input_that_never_comes) = io::pipe().unwrap();
    let bystander = guest("quiet test=echo").console(Console::pollable(input, io::stderr()));
    let bystander = bystander.build().unwrap().start().unwrap();

    let output = Console::output(Panicking);
    panics(guest("test=hang").console(output), "console-out", "the writer");
    let input = Console::new(Panicking, io::sink());
    panics(guest("test=hang").console(input), "console-in", "the reader");
    panics(guest("test=rng").device(Panicking), "virtio-4", "the device");
    panics(guest("test=diskinfo").device(PanickingConfig), "vcpu-0", "the configuration");

    assert_eq!(bystander.wait_timeout(Duration::ZERO), Ok(None));
    bystander.handle().stop();
    assert_eq!(bystander.wait(), Ok(Outcome::Stopped));
}
