//! A line of the log says of which machine it is. One test: the logger is the process's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::io::{self, Write};
use std::sync::Mutex;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use log::{Level, LevelFilter, Log, Metadata, Record};
use sparkler::virtio::{DeviceError, Session, VirtioDevice};
use sparkler::{Console, Placement};

use crate::common::guest;

/// Passes on all that is above `debug`.
struct PassOn(Mutex<Sender<String>>);

impl Log for PassOn {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        if record.level() < Level::Debug {
            let _ = self.0.lock().unwrap().send(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

/// An entropy device, and where console output goes: neither works.
struct Broken;

impl VirtioDevice for Broken {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8]
    }

    fn run(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        Err(io::Error::other("no entropy").into())
    }
}

impl Write for Broken {
    fn write(&mut self, _bytes: &[u8]) -> io::Result<usize> {
        Err(io::Error::other("no paper"))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_line_begins_with_the_name_of_its_machine() {
    let (sender, lines) = channel();
    log::set_logger(Box::leak(Box::new(PassOn(Mutex::new(sender))))).unwrap();
    log::set_max_level(LevelFilter::Trace);

    let told = |placement| {
        let builder = guest("test=rng").device(Broken).console(Console::output(Broken));
        let running = builder.placement(placement).build().unwrap().start().unwrap();
        let line = || lines.recv_timeout(Duration::from_secs(30)).expect("another line");
        let mut told = [line(), line()];
        told.sort();
        drop(running);
        assert!(lines.try_recv().is_err(), "nothing more than {told:?}");
        told
    };
    let device = "virtio-4 needs a reset: the host failed the device: no entropy";
    let writer =
        |thread| format!("the writer of {thread} failed, further output is dropped: no paper");
    assert_eq!(told(Placement::new()), [writer("console-out"), device.to_owned()]);
    let named = Placement::new().name_prefix("web");
    assert_eq!(told(named), [writer("web/console-out"), format!("web/{device}")]);
}
