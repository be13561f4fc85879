//! A guest cannot fill the host's log. One test: the logger is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod block_common;

use std::io;
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use sparkler_devices::virtio::block::Block;
use sparkler_devices::virtio::mock::MockDriver;

use block_common::{Guest, Image, Storage};

/// Target and text of all that is above `debug`.
static LINES: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

struct Keep;

impl Log for Keep {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() < Level::Debug {
            let line = (record.target().to_owned(), record.args().to_string());
            LINES.lock().unwrap().push(line);
        }
    }

    fn flush(&self) {}
}

fn lines() -> Vec<(String, String)> {
    std::mem::take(&mut LINES.lock().unwrap())
}

#[test]
fn failures_that_a_guest_brings_about_again_and_again_are_told_once() {
    log::set_logger(&Keep).unwrap();
    log::set_max_level(LevelFilter::Trace);

    let storage = Storage::new(vec![0; 1 << 20]);
    storage.fail(|_| Some(io::Error::from_raw_os_error(5)));
    let mut guest = Guest::new(storage.disk());
    for _ in 0..10 {
        assert_ne!(guest.write(0, &[1; 512]), 0);
        guest.restart();
    }
    let told = lines();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0.starts_with("sparkler_devices::virtio::block"), "{told:?}");

    let mut driver = MockDriver::new(Box::new(Block::new(Image::of_size(1 << 20).disk())));
    for _ in 0..10 {
        driver.start();
        // No room for the status of the request.
        driver.submit(0, &[&[0; 16]], &[]);
        driver.notify(0);
        driver.wait_for_needs_reset();
        driver.reset();
    }
    let told = lines();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].0.starts_with("sparkler_devices::virtio::worker"), "{told:?}");
}
