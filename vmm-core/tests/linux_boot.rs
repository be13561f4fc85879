//! A stock, unmodified Linux kernel under the library.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::io::Write;
use std::time::Duration;

use sparkler::cpu::CpuTemplate;
use sparkler::{
    Initrd, Kernel, MemorySize, Milestone, Outcome, Protocol, ResetAction, RunningVm, SharedRegion,
    Vm, VmBuilder,
};

use crate::common::Captured;

/// The kernel and an init that prints what it finds and ends as the command line says.
fn linux(cmdline: &str) -> VmBuilder {
    let path = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} must name a file"));
    Vm::builder()
        .memory(MemorySize::mib(256))
        .kernel(Kernel::file(path("SPARKLER_KERNEL")).unwrap())
        .initrd(Initrd::file(path("SPARKLER_INITRD")).unwrap())
        .cmdline(format!("console=ttyS0 panic=-1 {cmdline}"))
}

fn run(builder: VmBuilder) -> (Outcome, String, RunningVm) {
    let captured = Captured::default();
    let running = builder.console(captured.console()).build().unwrap().start().unwrap();
    let outcome = running.wait().unwrap();
    (outcome, captured.text(), running)
}

#[test]
#[ignore = "needs the lab"]
fn four_vcpus_boot_to_user_space_and_exit_with_a_code() {
    let (outcome, text, running) = run(linux("quiet exit=42").vcpus(4));
    assert_eq!(outcome, Outcome::Exited(42), "{text}");
    assert!(text.contains("nproc: 4"), "{text}");
    // Init's first act.
    assert!(running.timeline().at(Milestone::Mark(100)).is_some());
    assert_eq!(running.stats().console_output_dropped, 0);
}

#[test]
#[ignore = "needs the lab"]
fn the_baseline_template_boots_and_no_register_is_missed() {
    let (outcome, text, _) = run(linux("exit=5").vcpus(2).cpu_template(CpuTemplate::Baseline));
    assert_eq!(outcome, Outcome::Exited(5), "{text}");
    assert!(text.contains("(Sparkler baseline)"), "{text}");
    let (outcome, with_host, _) = run(linux("exit=6"));
    assert_eq!(outcome, Outcome::Exited(6), "{with_host}");
    // What a kernel says when it uses a register that is not there without being prepared for that.
    for text in [text, with_host] {
        assert!(!text.contains("unchecked MSR"), "{text}");
    }
}

#[test]
#[ignore = "needs the lab"]
fn reboot_poweroff_and_panic_end_as_they_should() {
    // By itself, Linux leaves through the reset vector, in real mode; that is where the lab's emulated
    // processor stumbles, so there it is told to use the ACPI reset register.
    let how = if common::emulated() { "reboot=acpi" } else { "" };
    for (end, expected) in
        [("reboot", Outcome::Reset), ("poweroff", Outcome::PowerOff), ("panic", Outcome::Reset)]
    {
        let (outcome, text, _) = run(linux(&format!("quiet end={end} {how}")));
        assert_eq!(outcome, expected, "{end}: {text}");
    }
}

#[test]
#[ignore = "needs the lab"]
fn without_acpi_the_pit_serves() {
    // Debian's cloud kernel is built without CONFIG_X86_MPPARSE: it sees the boot processor only.
    let (outcome, text, _) = run(linux("exit=7").acpi(false));
    assert_eq!(outcome, Outcome::Exited(7), "{text}");
    assert!(!text.contains("ACPI: RSDP"), "{text}");
    // Found to be absent, and not waited for.
    assert!(text.contains("i8042: No controller found"), "{text}");
    assert!(!text.contains("Can't write CTR"), "{text}");
}

#[test]
#[ignore = "needs the lab"]
fn the_same_kernel_enters_by_pvh() {
    let path = std::env::var("SPARKLER_KERNEL").unwrap();
    let kernel = Kernel::file(path).unwrap().with_protocol(Protocol::Pvh);
    let (outcome, text, _) = run(linux("quiet exit=9").kernel(kernel));
    assert_eq!(outcome, Outcome::Exited(9), "{text}");
}

#[test]
#[ignore = "needs the lab"]
fn memory_above_the_hole_is_seen() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"shared").unwrap();
    let builder = linux("exit=3")
        .memory(MemorySize::gib(6))
        .memory_region(16 << 30, MemorySize::mib(64))
        .shared_region(8 << 30, SharedRegion::fd(file.into()).unwrap());
    let (outcome, text, _) = run(builder);
    assert_eq!(outcome, Outcome::Exited(3), "{text}");
    let kib =
        text.lines().find_map(|line| line.trim().strip_prefix("memory: ")?.strip_suffix(" kB"));
    assert!(kib.unwrap().trim().parse::<u64>().unwrap() > 5 << 20, "{text}");
    for part in [
        "[mem 0x0000000100000000-0x00000001bfffffff] usable",
        "[mem 0x0000000200000000-0x0000000200000fff] reserved",
        "[mem 0x0000000400000000-0x0000000403ffffff] usable",
    ] {
        assert!(text.contains(part), "no {part} in {text}");
    }
}

#[test]
#[ignore = "needs the lab"]
fn the_power_button_switches_a_stock_kernel_off() {
    let captured = Captured::default();
    let builder = linux("quiet end=button").vcpus(2).console(captured.console());
    let running = builder.build().unwrap().start().unwrap();
    while !captured.text().contains("waiting for the power button") {
        assert_eq!(
            running.wait_timeout(Duration::from_millis(50)),
            Ok(None),
            "{}",
            captured.text()
        );
    }
    running.handle().shutdown().unwrap();
    assert_eq!(running.wait(), Ok(Outcome::PowerOff), "{}", captured.text());
}

#[test]
#[ignore = "needs the lab"]
fn a_stock_kernel_goes_on_after_pauses_and_starts_anew_after_its_reset() {
    let how = if common::emulated() { "reboot=acpi" } else { "" };
    let captured = Captured::default();
    let builder = linux(&format!("quiet end=reboot {how}")).vcpus(2);
    let builder = builder.on_reset(ResetAction::Restart).console(captured.console());
    let running = builder.build().unwrap().start().unwrap();
    let handle = running.handle();
    while captured.text().matches("init: hello from user space").count() < 2 {
        handle.pause().unwrap();
        handle.resume().unwrap();
        let end = running.wait_timeout(Duration::from_millis(200));
        assert_eq!(end, Ok(None), "{}", captured.text());
    }
    handle.stop();
    assert_eq!(running.wait(), Ok(Outcome::Stopped));
}
