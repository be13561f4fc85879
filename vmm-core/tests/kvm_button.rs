//! The power button, as far as a guest without an ACPI interpreter can tell: an interrupt. `linux_button.rs` has
//! a kernel that understands it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::thread;
use std::time::{Duration, Instant};

use sparkler::{ControlError, Outcome};

use crate::common::{Captured, guest};

fn wait_for(captured: &Captured, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !captured.text().contains(what) {
        assert!(Instant::now() < deadline, "{what:?} in {}", captured.text());
        thread::sleep(Duration::from_millis(1)); // Not to take the processor from the guest.
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_press_reaches_the_guest_running_or_paused() {
    for paused in [false, true] {
        let captured = Captured::default();
        let builder = guest("test=button end=poweroff").console(captured.console());
        let running = builder.build().unwrap().start().unwrap();
        let handle = running.handle();
        wait_for(&captured, "waiting");
        if paused {
            handle.pause().unwrap();
        }
        handle.shutdown().unwrap();
        if paused {
            assert_eq!(running.wait_timeout(Duration::from_millis(50)), Ok(None));
            handle.resume().unwrap();
        }
        assert_eq!(running.wait(), Ok(Outcome::PowerOff));
        assert_eq!(handle.shutdown(), Err(ControlError::Ended));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn without_acpi_there_is_no_button() {
    let running = guest("test=hang").acpi(false).build().unwrap().start().unwrap();
    assert_eq!(running.handle().shutdown(), Err(ControlError::NoPowerButton));
    running.handle().stop();
    assert_eq!(running.handle().shutdown(), Err(ControlError::Ended));
}
