//! Every ending that a guest can choose, and what it prints, on this host's KVM.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use sparkler::{CrashReason, Outcome, host::HostKind};

use crate::common::{Captured, guest};

#[test]
#[ignore = "needs /dev/kvm"]
fn the_guest_prints_and_exits_with_its_code() {
    let captured = Captured::default();
    let vm = guest("test=hello code=42").console(captured.console()).build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(42));
    let text = captured.text();
    assert!(text.to_lowercase().contains("sparkler"), "{text:?}");
    assert_eq!(running.stats().console_output_dropped, 0);
    // Asked again, it says the same.
    assert_eq!(running.wait().unwrap(), Outcome::Exited(42));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn reset_and_power_off_have_outcomes_of_their_own() {
    for (end, outcome) in [
        ("end=reset", Outcome::Reset),
        ("end=acpi-reset", Outcome::Reset),
        ("end=poweroff", Outcome::PowerOff),
        ("end=exit code=0", Outcome::Exited(0)),
        ("end=exit code=255", Outcome::Exited(255)),
    ] {
        assert_eq!(common::run(end), outcome, "{end}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_triple_fault_is_a_crash_in_words() {
    let Outcome::Crashed(crash) = common::run("end=triple") else { panic!("no crash") };
    // PVM may report it as an instruction that it cannot emulate.
    let pvm = HostKind::detect() == HostKind::Pvm;
    let possible = crash.reason == CrashReason::TripleFault
        || pvm
            && matches!(crash.reason, CrashReason::Emulation | CrashReason::InternalError { .. });
    assert!(possible, "{crash:?}");
    assert_eq!(crash.vcpu, 0);
    assert!(crash.instruction_pointer.is_some());
    assert!(crash.to_string().contains("vCPU 0"), "{crash}");
}
