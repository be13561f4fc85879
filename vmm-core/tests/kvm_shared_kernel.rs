//! Machines that have their kernel's memory in common.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs;

use sparkler::{Kernel, MemorySize, Outcome, RunningVm, Vm};

/// The built-in guest with 4 MiB more in a segment of its own, at 8 MiB.
fn large_kernel() -> Vec<u8> {
    let mut elf = sparkler_guest::ELF.to_vec();
    let headers = usize::try_from(u64::from_le_bytes(elf[32..40].try_into().unwrap())).unwrap();
    let count = u16::from_le_bytes(elf[56..58].try_into().unwrap());
    let moved = elf.len().next_multiple_of(4096);
    elf.resize(moved, 0);
    elf.extend_from_within(headers..headers + usize::from(count) * 56);
    elf.extend(1u32.to_le_bytes());
    elf.extend(4u32.to_le_bytes());
    let (offset, address, size) = (moved + 4096, 8u64 << 20, 4u64 << 20);
    for field in [offset as u64, address, address, size, size, 4096] {
        elf.extend(field.to_le_bytes());
    }
    elf[32..40].copy_from_slice(&(moved as u64).to_le_bytes());
    elf[56..58].copy_from_slice(&(count + 1).to_le_bytes());
    elf.resize(offset, 0);
    elf.resize(offset + (4 << 20), 0x5a);
    elf
}

/// The lines of this process's memory map that are parts of a shared kernel.
fn mappings() -> Vec<String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains("memfd:kernel")).map(str::to_owned).collect()
}

fn start(kernel: &Kernel, cmdline: &str) -> RunningVm {
    let builder = Vm::builder().memory(MemorySize::mib(16)).kernel(kernel.clone());
    builder.cmdline(cmdline).build().unwrap().start().unwrap()
}

#[test]
#[ignore = "needs /dev/kvm"]
fn machines_map_one_copy_of_the_kernel_and_leave_it_behind() {
    let kernel = Kernel::bytes(large_kernel()).shared().unwrap();
    assert_eq!(mappings().len(), 0);
    let machines: Vec<_> = (0..3).map(|_| start(&kernel, "test=hang")).collect();
    let maps = mappings();
    assert_eq!(maps.len(), 3, "{maps:?}");
    assert!(maps.iter().all(|line| line.contains(" rw-p ")), "{maps:?}");
    // In a machine, what is around it is memory as ever; the guest looks at it.
    let memory = format!("test=memory expect_memory={}", 16 << 20);
    assert_eq!(start(&kernel, &memory).wait().unwrap(), Outcome::Exited(0));
    drop(machines);
    assert_eq!(mappings().len(), 0);
}
