//! What a machine counts, against what its guest did.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sparkler::virtio::block::EngineKind;
use sparkler::virtio::rng::Rng;
use sparkler::virtio::{Counters, DeviceError, Session, VirtioDevice};
use sparkler::{DeviceStats, Outcome};

use crate::common::{Captured, disks, guest};

fn counter(device: &DeviceStats, name: &str) -> u64 {
    let mut found = device.counters.iter().filter(|(of, _)| *of == name);
    let value = found.next().unwrap_or_else(|| panic!("no {name} in {device:?}")).1;
    assert!(found.next().is_none(), "{name} twice in {device:?}");
    value
}

#[test]
#[ignore = "needs /dev/kvm"]
fn devices_count_what_the_guest_asked_of_them() {
    let file = disks::file(1 << 20);
    let disk = disks::open(file.path(), EngineKind::Sync);
    let handle = disk.handle();
    let builder = guest("quiet test=iops requests=50").device(Rng::new().unwrap()).disk(disk);
    let vm = builder.build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    let stats = running.stats();
    let [rng, disk] = &stats.devices[..] else { panic!("{stats:?}") };
    assert_eq!((rng.device_type, disk.device_type), (4, 2));
    assert_eq!(counter(disk, "reads"), 50);
    assert_eq!(counter(disk, "read_bytes"), 50 * 4096);
    assert_eq!(counter(disk, "reads"), handle.stats().reads);
    assert_eq!((counter(disk, "writes"), counter(disk, "errors")), (0, 0));
    assert!(disk.transport.interrupts > 0 && disk.transport.resets > 0, "{disk:?}");
    assert_eq!((disk.transport.failures, counter(rng, "requests")), (0, 0));

    let vm = guest("quiet test=rng").device(Rng::new().unwrap()).build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    let stats = running.stats();
    assert_eq!(counter(&stats.devices[0], "bytes"), 2 * 4096);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_driver_that_breaks_the_rules_is_counted() {
    let file = disks::file(1 << 20);
    let cmdline = "quiet test=hostile case=break times=3 requests=5";
    let vm = guest(cmdline).vcpus(2).disk(disks::open(file.path(), EngineKind::Sync));
    let running = vm.build().unwrap().start().unwrap();
    let outcome = running.wait().unwrap();
    assert_eq!(outcome, Outcome::Exited(0));
    assert_eq!(running.stats().devices[0].transport.failures, 3);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn exits_are_counted_by_vcpu_and_reason() {
    let captured = Captured::default();
    let builder = guest("quiet test=print bytes=1000").console(captured.console());
    let running = builder.build().unwrap().start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    let stats = running.stats();
    assert_eq!(stats.vcpus.len(), 1);
    // One for each byte; and now and then a look at the line status.
    let exits = stats.exits();
    assert!((1000..2000).contains(&exits.port_writes), "{stats:?}");
    assert!(exits.port_reads > 0, "{stats:?}");
    assert_eq!((exits.mmio_writes, exits.others), (0, 0), "{stats:?}");

    let vm = guest("quiet test=mmio").vcpus(2).build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    let stats = running.stats();
    assert!(stats.vcpus[0].mmio_reads > 0 && stats.vcpus[0].mmio_writes > 0, "{stats:?}");
    assert_eq!((stats.vcpus[1].mmio_reads, stats.vcpus[1].port_writes), (0, 0), "{stats:?}");

    let vm = guest("test=crash").build().unwrap();
    let running = vm.start().unwrap();
    assert!(matches!(running.wait().unwrap(), Outcome::Crashed(_)));
    assert_eq!(running.stats().exits().others, 1);
}

/// A device of the caller's own, which counts how often it went live.
#[derive(Default)]
struct Own(Arc<Lives>);

#[derive(Default)]
struct Lives(AtomicU64);

impl Counters for Lives {
    fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
        each("lives", self.0.load(Ordering::Relaxed));
    }
}

impl VirtioDevice for Own {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.0) as _
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.0.0.fetch_add(1, Ordering::Relaxed);
        while session.wait(&[], None)? {}
        Ok(())
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_device_of_ones_own_counts_too() {
    let vm = guest("quiet test=rng").device(Own::default()).build().unwrap();
    assert_eq!(vm.stats().devices[0].counters, [("lives", 0)]);
    let running = vm.start().unwrap();
    // The guest waits in vain for entropy. Its driver is live once it waits.
    while running.stats().devices[0].counters != [("lives", 1)] {
        assert_eq!(running.wait_timeout(std::time::Duration::from_millis(10)).unwrap(), None);
    }
}
