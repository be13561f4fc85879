//! The machine is what its guest was told: memory, vCPUs, interrupts, ports, both ways to enter.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use sparkler::host::HostReport;
use sparkler::{BuildError, Kernel, MemorySize, Outcome, Protocol, VmBuilder};

use crate::common::{Captured, guest};

/// Runs a guest that checks itself, and shows what it printed if it finds a fault.
fn check(builder: VmBuilder) {
    let captured = Captured::default();
    let running = builder.console(captured.console()).build().unwrap().start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0), "{}", captured.text());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_is_all_there_at_any_size() {
    let sizes = [MemorySize::MIN, MemorySize::mib(128), MemorySize::gib(3), MemorySize::gib(6)];
    for size in sizes.into_iter().chain([MemorySize::gib(300), MemorySize::kib((5 << 20) + 4)]) {
        let cmdline = format!("test=memory expect_memory={}", size.as_bytes());
        check(guest(&cmdline).memory(size));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn every_vcpu_starts_with_an_id_of_its_own() {
    for count in [1, 2, 3, 16, 64] {
        let cmdline = format!("test=vcpus expect_vcpus={count}");
        check(guest(&cmdline).vcpus(count).memory(MemorySize::mib(64)));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn as_many_vcpus_are_possible_as_the_report_says() {
    let most = HostReport::probe().kvm.unwrap().max_vcpus;
    drop(guest("").vcpus(most).build().unwrap());
    let error = guest("").vcpus(most + 1).build().unwrap_err();
    assert!(matches!(error, BuildError::Vcpus { limit, .. } if limit == most), "{error}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn timer_and_serial_port_interrupt() {
    check(guest("test=interrupts"));
    check(guest("test=interrupts").acpi(false));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn absent_ports_and_addresses_read_all_ones_and_hurt_nobody() {
    check(guest("test=ports"));
    check(guest("test=mmio"));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn pvh_enters_the_same_guest() {
    let pvh = || Kernel::bytes(sparkler_guest::ELF).with_protocol(Protocol::Pvh);
    check(guest("test=memory expect_memory=16777216").kernel(pvh()));
    check(guest("test=vcpus expect_vcpus=2").vcpus(2).kernel(pvh()));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn more_memory_than_the_processor_can_address_is_refused() {
    // Hosts of 43 bits and more can do it: then it must work.
    match guest("").memory(MemorySize::MAX).build() {
        Ok(vm) => assert_eq!(vm.start().unwrap().wait().unwrap(), Outcome::Exited(0)),
        Err(BuildError::Memory { requested, max, .. }) => assert!(requested > max),
        Err(error) => panic!("{error}"),
    }
}
