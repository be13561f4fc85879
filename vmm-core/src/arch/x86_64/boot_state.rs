//! The state in which the boot vCPU enters the kernel: 64-bit mode with identity-mapped memory for the
//! Linux boot protocol, flat 32-bit protected mode for PVH.

use kvm_bindings::{kvm_dtable, kvm_regs, kvm_segment};
use kvm_ioctls::VcpuFd;
use sparkler_devices::power;
use sparkler_loader::{Entry, Protocol, layout};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::error::KvmError;

// Selectors, as the Linux boot protocol has them (`__BOOT_CS`, `__BOOT_DS`).
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

// Segment types.
const CODE_EXECUTE_READ: u8 = 0b1011;
const DATA_READ_WRITE: u8 = 0b0011;
const TASK_BUSY: u8 = 0b1011;

const CR0_PROTECTED_MODE: u64 = 1;
const CR0_EXTENSION_TYPE: u64 = 1 << 4;
const CR0_PAGING: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LONG_MODE_ENABLE: u64 = 1 << 8;
const EFER_LONG_MODE_ACTIVE: u64 = 1 << 10;
const RFLAGS_RESERVED: u64 = 1 << 1;

/// Where a processor in real mode starts, as seen from below 1 MiB: behind the ACPI tables.
const RESET_VECTOR: GuestAddress = GuestAddress(0xf_fff0);

const PAGE_PRESENT_WRITABLE: u64 = 0b11;
const PAGE_2_MIB: u64 = 1 << 7;
const PAGE_SIZE: u64 = 4096;
const LARGE_PAGE_SIZE: u64 = 2 << 20;

/// Writes GDT and page tables, which map the first 4 GiB to themselves in pages of 2 MiB.
pub(crate) fn write_page_tables(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let gdt = [0, 0, descriptor(&code(true)), descriptor(&data()), descriptor(&task())];
    write_table(memory, layout::GDT, &gdt)?;
    write_table(memory, layout::PML4, &[layout::PDPT.0 | PAGE_PRESENT_WRITABLE])?;
    let directory =
        |index: u64| (layout::PAGE_DIRECTORIES.0 + index * PAGE_SIZE) | PAGE_PRESENT_WRITABLE;
    write_table(memory, layout::PDPT, &[0, 1, 2, 3].map(directory))?;
    let large_pages: Vec<u64> = (0..4 * 512)
        .map(|index| (index * LARGE_PAGE_SIZE) | PAGE_PRESENT_WRITABLE | PAGE_2_MIB)
        .collect();
    write_table(memory, layout::PAGE_DIRECTORIES, &large_pages)
}

/// Writes what runs at the processor's reset vector in place of a firmware: it asks for a reset. Linux
/// jumps there to reboot a hardware-reduced ACPI machine, which it expects to have EFI.
pub(crate) fn write_reset_vector(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let [low, high] = power::ACPI_RESET_PORT.to_le_bytes();
    let value = power::ACPI_RESET_VALUE;
    // mov dx, port; mov al, value; out dx, al; hlt; jump back to the hlt
    let code = [0xba, low, high, 0xb0, value, 0xee, 0xf4, 0xeb, 0xfd];
    memory.write_slice(&code, RESET_VECTOR)
}

fn write_table(
    memory: &GuestMemoryMmap,
    address: GuestAddress,
    entries: &[u64],
) -> Result<(), GuestMemoryError> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, address)
}

/// Sets the registers of the boot vCPU.
pub(super) fn set_up(vcpu: &VcpuFd, entry: &Entry) -> Result<(), KvmError> {
    let long_mode = entry.protocol != Protocol::Pvh;
    let mut sregs = vcpu.get_sregs().map_err(KvmError::ioctl("KVM_GET_SREGS"))?;
    sregs.cs = code(long_mode);
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data();
    }
    sregs.tr = task();
    sregs.gdt = kvm_dtable { base: layout::GDT.0, limit: 5 * 8 - 1, ..Default::default() };
    // No interrupt descriptors: interrupts are off until the kernel brings its own.
    sregs.idt = kvm_dtable { base: layout::IDT.0, limit: 0, ..Default::default() };
    sregs.cr0 = CR0_PROTECTED_MODE | CR0_EXTENSION_TYPE;
    if long_mode {
        sregs.cr0 |= CR0_PAGING;
        sregs.cr3 = layout::PML4.0;
        sregs.cr4 |= CR4_PAE;
        sregs.efer |= EFER_LONG_MODE_ENABLE | EFER_LONG_MODE_ACTIVE;
    }
    vcpu.set_sregs(&sregs).map_err(KvmError::ioctl("KVM_SET_SREGS"))?;

    let mut regs = kvm_regs {
        rflags: RFLAGS_RESERVED,
        rip: entry.instruction_pointer.0,
        ..Default::default()
    };
    match entry.protocol {
        Protocol::Pvh => regs.rbx = entry.boot_info.0,
        _ => regs.rsi = entry.boot_info.0,
    }
    vcpu.set_regs(&regs).map_err(KvmError::ioctl("KVM_SET_REGS"))
}

/// A flat code segment, of 64 or of 32 bits.
fn code(long_mode: bool) -> kvm_segment {
    kvm_segment {
        selector: CODE_SELECTOR,
        type_: CODE_EXECUTE_READ,
        l: u8::from(long_mode),
        db: u8::from(!long_mode),
        ..flat()
    }
}

fn data() -> kvm_segment {
    kvm_segment { selector: DATA_SELECTOR, type_: DATA_READ_WRITE, db: 1, ..flat() }
}

fn task() -> kvm_segment {
    kvm_segment { selector: TASK_SELECTOR, type_: TASK_BUSY, s: 0, g: 0, limit: 0x67, ..flat() }
}

/// From 0 to 4 GiB, present, for ring 0.
fn flat() -> kvm_segment {
    kvm_segment { limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() }
}

/// A segment as its descriptor in the GDT (AMD64 manual, volume 2, section 4.7). All have base 0.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    (limit & 0xffff)
        | u64::from(segment.type_) << 40
        | u64::from(segment.s) << 44
        | u64::from(segment.dpl) << 45
        | u64::from(segment.present) << 47
        | (limit >> 16 & 0xf) << 48
        | u64::from(segment.l) << 53
        | u64::from(segment.db) << 54
        | u64::from(segment.g) << 55
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_those_of_the_boot_protocol() {
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
        assert_eq!(descriptor(&task()), 0x0000_8b00_0000_0067);
    }

    #[test]
    fn the_first_four_gib_map_to_themselves() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        write_page_tables(&memory).unwrap();
        let entry = |table: u64, index: u64| -> u64 {
            memory.read_obj(GuestAddress((table & !0xfff) + index * 8)).unwrap()
        };
        for address in [0, 0x1234_5678, 0xbfff_ffff, 0xfee0_0000, 0xffff_ffff_u64] {
            let directory_pointers = entry(layout::PML4.0, 0);
            let directory = entry(directory_pointers, address >> 30);
            let page = entry(directory, address >> 21 & 0x1ff);
            assert_eq!(page, (address & !0x1f_ffff) | 0x83, "{address:#x}");
            assert_eq!((directory_pointers & 3, directory & 3), (3, 3));
        }
    }
}
