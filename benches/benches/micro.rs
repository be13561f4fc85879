//! What happens most often, and what a boot waits for, without a virtual machine: `cargo bench`.

// A failed unwrap is a failed bench.
#![allow(clippy::unwrap_used, missing_docs)]

use std::hint::black_box;
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use sparkler_benches::large_kernel;
use sparkler_devices::virtio::mock::{MockInterrupt, MockRing};
use sparkler_devices::{Bus, BusDevice};
use sparkler_loader::{BootConfig, Cmdline, Kernel};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// A descriptor's flags: another follows; the device writes.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

criterion_group!(benches, queue, bus, loader);
criterion_main!(benches);

/// A disk's read in three descriptors, from the driver's offer to the used entry in its hands.
fn queue(criterion: &mut Criterion) {
    let memory = memory(16 << 20);
    let mut ring = MockRing::new(memory, GuestAddress(0x1000), 256);
    ring.set_descriptor(0, GuestAddress(0x10_0000), 16, NEXT, 1);
    ring.set_descriptor(1, GuestAddress(0x20_0000), 4096, NEXT | WRITE, 2);
    ring.set_descriptor(2, GuestAddress(0x30_0000), 1, WRITE, 0);
    let mut queue = ring.activate(0, &MockInterrupt::default()).unwrap();
    criterion.bench_function("queue: offer, pop, push, take", |bencher| {
        bencher.iter(|| {
            ring.offer(0);
            let chain = queue.pop().unwrap().unwrap();
            queue.push(black_box(chain), 4097).unwrap();
            ring.take_used().unwrap()
        });
    });
}

struct Register;

impl BusDevice for Register {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(1);
    }
    fn write(&self, _offset: u64, _data: &[u8]) {}
}

/// As many devices as a well-filled machine has, and an address of the last of them.
fn bus(criterion: &mut Criterion) {
    let mut bus = Bus::new();
    for index in 0..24 {
        bus.insert(0xd000_0000 + index * 0x1000, 0x1000, Arc::new(Register)).unwrap();
    }
    let mut group = criterion.benchmark_group("bus");
    for (name, address) in [("device", 0xd001_7050), ("nothing there", 0xe000_0000)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut data = [0; 4];
                bus.read(black_box(address), &mut data);
                data
            });
        });
    }
}

/// Into fresh memory each time, as a boot has it: its pages are part of the cost.
fn loader(criterion: &mut Criterion) {
    let large = large_kernel(sparkler_guest::ELF);
    let cmdline = Cmdline::new("console=ttyS0").unwrap();
    let config = BootConfig { cmdline: &cmdline, initrd: None, rsdp: None, reserved: &[] };
    let kernels = [
        ("tiny guest", sparkler_guest::ELF.len(), Kernel::bytes(sparkler_guest::ELF)),
        ("53 MB ELF file", large.len(), Kernel::bytes(large)),
    ];
    let mut group = criterion.benchmark_group("loader");
    group.sample_size(20);
    for (name, size, kernel) in kernels {
        group.throughput(Throughput::Bytes(size.try_into().unwrap()));
        group.bench_function(name, |bencher| {
            let load = |memory: GuestMemoryMmap| {
                kernel.load(&memory, &config).unwrap();
                memory
            };
            bencher.iter_batched(|| memory(128 << 20), load, BatchSize::PerIteration);
        });
    }
}

fn memory(size: usize) -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), size)]).unwrap()
}
