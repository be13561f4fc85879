//! Devices of the caller's own at ports and addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::rng::Rng;
use sparkler::{
    BuildError, BusDevice, Interrupt, InterruptLine, InterruptLineError, Outcome, OwnDeviceError,
    ResetAction, RunError,
};
use sparkler_guest::exit_code;

use crate::common::{Captured, guest};

/// Answers every read with the same byte and keeps what is written.
struct Scribe {
    answer: u8,
    written: Mutex<Vec<(u64, usize)>>,
    resets: AtomicU32,
}

impl Scribe {
    fn new(answer: u8) -> Arc<Self> {
        let (written, resets) = Default::default();
        Arc::new(Self { answer, written, resets })
    }
}

impl BusDevice for Scribe {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(self.answer);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        self.written.lock().unwrap().push((offset, data.len()));
    }

    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_the_guest_does_at_a_port_arrives() {
    let device = Scribe::new(0xff);
    let builder = guest("test=ports").port_device(0x1230..=0x1237, device.clone());
    assert_eq!(builder.build().unwrap().start().unwrap().wait(), Ok(Outcome::Exited(0)));
    // At port 0x1234: 8, 16 and 32 bits, and eight by a string instruction.
    let written = device.written.lock().unwrap();
    assert_eq!(written[..3], [(4, 1), (4, 2), (4, 4)]);
    assert_eq!(written[3..].iter().map(|(_, length)| length).sum::<usize>(), 8);
    assert!(written.iter().all(|(offset, _)| *offset == 4));

    // The guest takes what the device says for what it is.
    let builder = guest("test=ports").port_device(0x1234..=0x1234, Scribe::new(0x5a));
    let outcome = builder.build().unwrap().start().unwrap().wait();
    assert_eq!(outcome, Ok(Outcome::Exited(exit_code::PORT_VALUE)));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_the_guest_does_at_an_address_arrives() {
    let device = Scribe::new(0xff);
    let builder = guest("test=mmio").mmio_device(0xfd00_1000..=0xfd00_1fff, device.clone());
    assert_eq!(builder.build().unwrap().start().unwrap().wait(), Ok(Outcome::Exited(0)));
    let written = device.written.lock().unwrap();
    assert!(written.contains(&(0, 1)) && written.contains(&(3, 4)), "{written:?}");

    let builder = guest("test=mmio").mmio_device(0xd123_4000..=0xd123_4fff, Scribe::new(0));
    let outcome = builder.build().unwrap().start().unwrap().wait();
    assert_eq!(outcome, Ok(Outcome::Exited(exit_code::MMIO_VALUE)));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_reset_reaches_them_and_a_panic_of_theirs_ends_their_machine() {
    struct Panics;
    impl BusDevice for Panics {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {
            panic!("too much")
        }
    }
    let device = Scribe::new(0);
    let builder = guest("test=hang").on_reset(ResetAction::Restart);
    let running =
        builder.port_device(0x500..=0x500, device.clone()).build().unwrap().start().unwrap();
    running.handle().reset().unwrap();
    assert_eq!(device.resets.load(Ordering::SeqCst), 1);

    let running = guest("test=ports").port_device(0x222..=0x222, Panics).build().unwrap().start();
    let (thread, message) = ("vcpu-0".to_owned(), "too much".to_owned());
    assert_eq!(running.unwrap().wait(), Err(RunError::Panicked { thread, message }));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_place_that_is_taken_is_refused() {
    let port = guest("").port_device(0x3fc..=0x3fc, Scribe::new(0)).build().unwrap_err();
    assert_eq!(
        port.to_string(),
        "a device at port 0x3fc to 0x3fc is not possible: COM1, from 0x3f8 to 0x3ff, is in its way"
    );
    let memory = guest("").mmio_device(0xf0_0000..=0xf0_0fff, Scribe::new(0)).build().unwrap_err();
    assert!(memory.to_string().contains("memory, from 0x0 to 0xffffff, is in"), "{memory}");
    let beyond = guest("").mmio_device(1 << 52..=1 << 52, Scribe::new(0)).build().unwrap_err();
    assert!(matches!(beyond, BuildError::OwnDevice(OwnDeviceError::Beyond { .. })), "{beyond}");
}

/// Until the guest has said `times` times that it waits for an interrupt.
fn wait_for_guest(captured: &Captured, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while captured.text().matches("waiting").count() < times {
        assert!(Instant::now() < deadline, "{}", captured.text());
        thread::sleep(Duration::from_millis(1)); // Not to take the processor from the guest.
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn an_interrupt_line_interrupts_the_guest() {
    for (gsi, acpi) in [(5, true), (22, true), (10, false)] {
        let (line, captured) = (InterruptLine::new(), Captured::default());
        let builder = guest(&format!("test=button gsi={gsi}")).console(captured.console());
        let vm = builder.acpi(acpi).interrupt_line(gsi, &line).build().unwrap();
        let running = vm.start().unwrap();
        wait_for_guest(&captured, 1);
        line.trigger().unwrap();
        assert_eq!(running.wait(), Ok(Outcome::Exited(0)), "GSI {gsi}: {}", captured.text());
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn an_interrupt_line_outlives_a_restart_and_waits_for_a_paused_machine() {
    let (line, captured) = (InterruptLine::new(), Captured::default());
    let builder = guest("test=button gsi=9").console(captured.console());
    let builder = builder.interrupt_line(9, &line).on_reset(ResetAction::Restart);
    let running = builder.build().unwrap().start().unwrap();
    wait_for_guest(&captured, 1);
    running.handle().reset().unwrap();
    wait_for_guest(&captured, 2);
    running.handle().pause().unwrap();
    line.trigger().unwrap();
    assert_eq!(running.wait_timeout(Duration::from_millis(50)), Ok(None));
    running.handle().resume().unwrap();
    assert_eq!(running.wait(), Ok(Outcome::Exited(0)));

    // It is of one machine for good, and keeps nothing of that.
    drop(running);
    assert_eq!(line.trigger().unwrap_err().kind(), std::io::ErrorKind::NotConnected);
    let error = guest("").interrupt_line(9, &line).build().unwrap_err();
    let connected = InterruptLineError::Connected { gsi: 9 };
    assert!(
        matches!(error, BuildError::InterruptLine(ref error) if *error == connected),
        "{error}"
    );
}

#[test]
#[ignore = "needs /dev/kvm"]
fn virtio_devices_keep_away_from_the_interrupts_of_lines() {
    let lines: Vec<_> = InterruptLine::GSIS.map(|gsi| (gsi, InterruptLine::new())).collect();
    // The guest knows no ACPI: it is told here where its devices are, and that they share what is left.
    let announced = "virtio_mmio.device=4096@0xd0000000:23 virtio_mmio.device=4096@0xd0001000:23";
    let builder = guest(&format!("test=rng {announced}"));
    let builder = builder.device(Rng::new().unwrap()).device(Rng::new().unwrap());
    let builder = lines.iter().fold(builder, |all, (gsi, line)| all.interrupt_line(*gsi, line));
    assert_eq!(builder.build().unwrap().start().unwrap().wait(), Ok(Outcome::Exited(0)));
}
