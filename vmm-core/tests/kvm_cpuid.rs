//! What a guest sees of the processor: CPUID as it was edited, templates, and registers that are kept from it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::sync::{Arc, Mutex};

use sparkler::cpu::{CpuTemplate, CpuidEntry, guest_cpuid};
use sparkler::{BuildError, Outcome, VmBuilder};
use sparkler_guest::exit_code;

use crate::common::disks::{number, run_to_end, succeed};
use crate::common::guest;

/// EAX, EBX, ECX, EDX in the guest of `configure`.
fn in_guest(leaf: u32, configure: impl FnOnce(VmBuilder) -> VmBuilder) -> [u32; 4] {
    let text = succeed(configure(guest(&format!("quiet test=cpuid leaf={leaf}"))));
    ["eax", "ebx", "ecx", "edx"].map(|name| u32::try_from(number(&text, name)).unwrap())
}

fn registers(entries: &[CpuidEntry], leaf: u32) -> [u32; 4] {
    let entry = entries.iter().find(|entry| entry.is(leaf, 0)).unwrap();
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_guest_sees_what_the_host_says_it_would() {
    let entries = guest_cpuid(CpuTemplate::Host).unwrap().entries;
    for leaf in [0, 0x4000_0000, 0x8000_0000] {
        assert_eq!(in_guest(leaf, |guest| guest), registers(&entries, leaf), "{leaf:#x}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_hook_sees_each_vcpu_and_has_the_last_word() {
    const NAME: u32 = 0x8000_0002;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let of_hook = Arc::clone(&seen);
    let configure = |guest: VmBuilder| {
        guest.vcpus(2).cpuid(move |vcpu, entries| {
            let id = registers(entries, 1)[1] >> 24;
            of_hook.lock().unwrap().push((u32::from(vcpu), id));
            for entry in entries.iter_mut().filter(|entry| entry.is(NAME, 0)) {
                [entry.eax, entry.ebx, entry.ecx, entry.edx] = [1, 2, 3, 4];
            }
        })
    };
    assert_eq!(in_guest(NAME, configure), [1, 2, 3, 4]);
    assert_eq!(*seen.lock().unwrap(), [(0, 0), (1, 1)]);

    let endless = |_, entries: &mut Vec<CpuidEntry>| entries.resize(257, entries[0]);
    let error = guest("").cpuid(endless).build().unwrap_err();
    assert!(error.to_string().contains("too many CPUID leaves"), "{error}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_baseline_hides_the_host() {
    let baseline = guest_cpuid(CpuTemplate::Baseline).unwrap().entries;
    assert_eq!(registers(&baseline, 0)[0], 0xd);
    let whole = |guest: VmBuilder| guest.cpu_template(CpuTemplate::Baseline);
    for leaf in [0, 0x8000_0000, 0x8000_0002, 0x8000_0003, 0x4000_0000] {
        assert_eq!(in_guest(leaf, whole), registers(&baseline, leaf), "{leaf:#x}");
    }
    let name = [0x8000_0002, 0x8000_0003].map(|leaf| in_guest(leaf, whole).map(u32::to_le_bytes));
    let name = String::from_utf8(name.concat().concat()).unwrap();
    assert!(name.contains("(Sparkler baseline)"), "{name}");
    succeed(guest("test=vcpus expect_vcpus=3").vcpus(3).cpu_template(CpuTemplate::Baseline));
    succeed(guest("test=interrupts").cpu_template(CpuTemplate::Baseline));

    let templates = [CpuTemplate::IntelBaseline, CpuTemplate::AmdBaseline];
    let refused = templates.map(|template| {
        let result = guest("").cpu_template(template).build();
        matches!(result, Err(BuildError::CpuTemplate(error)) if error.template == template)
    });
    assert_ne!(refused[0], refused[1], "one of them is for this host");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn registers_that_tell_of_the_host_are_not_there() {
    let read = |msr: u32| run_to_end(guest(&format!("quiet test=msr msr={msr}")));
    // Performance counters of Intel and AMD, PPIN, energy, APERF, temperature.
    for msr in [0xc1, 0xc001_0000, 0xc001_0004, 0xc001_0200, 0x4f, 0x611, 0xc001_029a, 0xe8, 0x19c]
    {
        let (outcome, text) = read(msr);
        assert_eq!(outcome, Outcome::Exited(exit_code::EXCEPTION), "{msr:#x}: {text}");
        assert!(!text.contains("value="), "{text}");
    }
    // Which KVM emulates everywhere: the filter is what keeps it away.
    let power_unit = guest("quiet test=msr msr=0x606");
    assert_eq!(run_to_end(power_unit.msr_filter(false)).0, Outcome::Exited(0));
    assert_eq!(read(0x606).0, Outcome::Exited(exit_code::EXCEPTION));
    // TSC, APIC base, PAT, EFER.
    for msr in [0x10, 0x1b, 0x277, 0xc000_0080] {
        let (outcome, text) = read(msr);
        assert_eq!(outcome, Outcome::Exited(0), "{msr:#x}: {text}");
        assert!(number(&text, "value") > 0, "{text}");
    }
}
