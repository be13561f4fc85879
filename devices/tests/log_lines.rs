//! A guest cannot fill the host's log, and a line says whose it is. One test: the logger is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod block_common;
mod net_common;

use std::io;
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};
use sparkler_devices::virtio::block::Block;
use sparkler_devices::virtio::mock::MockDriver;
use sparkler_devices::virtio::net::MacAddress;

use block_common::{Guest, Image, Storage};
use net_common::Peer;

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

/// The text of the only line since the last call.
fn the_line(target: &str) -> String {
    let mut lines = std::mem::take(&mut *LINES.lock().unwrap());
    assert_eq!(lines.len(), 1, "{lines:?}");
    let (of, text) = lines.remove(0);
    assert!(of.starts_with(target), "{of}: {text}");
    text
}

#[test]
fn failures_are_told_once_and_say_whose_they_are() {
    log::set_logger(&Keep).unwrap();
    log::set_max_level(LevelFilter::Trace);

    let storage = Storage::new(vec![0; 1 << 20]);
    storage.fail(|_| Some(io::Error::from_raw_os_error(5)));
    let mut guest = Guest::new(storage.disk());
    for _ in 0..10 {
        assert_ne!(guest.write(0, &[1; 512]), 0);
        guest.restart();
    }
    assert!(the_line("sparkler_devices::virtio::block").contains(" engine of its own fails"));

    assert!(broken_rules(|_| {}).starts_with("virtio-2 needs a reset: "));
    let prefixed = broken_rules(|driver| driver.transport().set_log_prefix("web"));
    assert!(prefixed.starts_with("web/virtio-2 needs a reset: "), "{prefixed}");

    let image = Image::of_size(1 << 20);
    let mut guest = Guest::new(image.disk());
    image.file().set_len(4096).unwrap();
    assert_ne!(guest.read(100, 512).status, 0);
    let named = format!("the disk {} fails, ", image.path().display());
    assert!(the_line("sparkler_devices::virtio::block").starts_with(&named));

    let (net, peer) = Peer::new();
    let mac = MacAddress::for_name("web");
    let mut guest = net_common::Guest::new(net.mac(mac));
    // What the guest calls the card says nothing to the host.
    assert_eq!(guest.command(1, 1, &[2, 0, 0, 0, 0, 1]), 0);
    guest.offer(10, 2048);
    drop(peer);
    guest.wait_for_link(false);
    let named = format!("the network of the card {mac} is gone, ");
    assert!(the_line("sparkler_devices::virtio::net").starts_with(&named));
}

/// What is told of a driver of a disk that breaks the rules again and again.
fn broken_rules(prepare: impl FnOnce(&MockDriver)) -> String {
    let mut driver = MockDriver::new(Box::new(Block::new(Image::of_size(1 << 20).disk())));
    prepare(&driver);
    for _ in 0..10 {
        driver.start();
        // No room for the status of the request.
        driver.submit(0, &[&[0; 16]], &[]);
        driver.notify(0);
        driver.wait_for_needs_reset();
        driver.reset();
    }
    the_line("sparkler_devices::virtio::worker")
}
