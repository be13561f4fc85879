//! Virtio devices of a machine, as the built-in guest finds and drives them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use sparkler::virtio::VirtioDevice;
use sparkler::virtio::block::{Block, Disk};
use sparkler::virtio::rng::Rng;
use sparkler::{Outcome, VmBuilder};
use sparkler_guest::exit_code;

use crate::common::disks::{file, number, run_to_end, succeed};
use crate::common::guest;

#[test]
#[ignore = "needs /dev/kvm"]
fn the_entropy_device_gives_entropy_however_it_is_waited_for() {
    for way in ["wait=interrupt", "wait=halt", "wait=poll"] {
        let text = succeed(guest(&format!("quiet test=rng {way}")).device(Rng::new().unwrap()));
        assert_eq!(number(&text, "rng_devices"), 1);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn devices_of_different_types_come_from_one_list() {
    let file = file(1 << 20);
    let disk = Block::new(Disk::open(file.path()).unwrap());
    let list: Vec<Box<dyn VirtioDevice>> = vec![Box::new(Rng::new().unwrap()), Box::new(disk)];
    let text = succeed(list.into_iter().fold(guest("quiet test=virtio"), VmBuilder::device));
    assert_eq!(number(&text, "virtio_devices"), 2, "{text}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_without_devices_has_none() {
    let (outcome, text) = run_to_end(guest("quiet test=rng"));
    assert_eq!(outcome, Outcome::Exited(exit_code::VIRTIO_MISSING));
    assert_eq!(number(&text, "rng_devices"), 0);
    assert_eq!(number(&succeed(guest("quiet test=virtio")), "virtio_devices"), 0);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn all_of_24_devices_answer() {
    let files = [(); 4].map(|()| file(1 << 20));
    let machine = |cmdline: &str, acpi: bool| -> VmBuilder {
        let builder = (0..10).fold(guest(cmdline), |it, _| it.device(Rng::new().unwrap()));
        let disks = files.iter().map(|file| Disk::open(file.path()).unwrap());
        let builder = disks.fold(builder, VmBuilder::disk);
        (0..10).fold(builder, |it, _| it.device(Rng::new().unwrap())).acpi(acpi)
    };
    // Without ACPI, the guest takes addresses and interrupts from the command line, as Linux does.
    for acpi in [true, false] {
        let text = succeed(machine("quiet test=virtio", acpi));
        assert_eq!(number(&text, "virtio_devices"), 24, "{text}");
        // By interrupt; the last five share theirs with the first five.
        let text = succeed(machine("quiet test=rng", acpi));
        assert_eq!(number(&text, "rng_devices"), 20, "{text}");
        for disk in 0..4 {
            let cmdline = format!("quiet test=disk requests=50 depth=4 disk={disk}");
            succeed(machine(&cmdline, acpi));
        }
    }
}
