//! Where things lie in guest-physical memory.
//!
//! ```text
//! 0x0000_0500  GDT, then the (empty) IDT           written by the VMM
//! 0x0000_6000  PVH: hvm_start_info, module list, memory map (one page)
//! 0x0000_7000  Linux: boot_params (one page)
//! 0x0000_9000  PML4, PDPT, four page directories: identity map of 4 GiB   written by the VMM
//! 0x0002_0000  command line
//! 0x0009_fc00  MP table (the e820 map reserves everything from here to 1 MiB)
//! 0x000e_0000  ACPI tables, RSDP first
//! 0x0010_0000  kernel; the initrd ends where RAM below the hole ends
//! 0xc000_0000  hole for devices: no RAM
//! 0x1_0000_0000  RAM again
//! ```

use vm_memory::GuestAddress;

/// The global descriptor table.
pub const GDT: GuestAddress = GuestAddress(0x500);
/// The interrupt descriptor table (a single empty entry; the kernel brings its own).
pub const IDT: GuestAddress = GuestAddress(0x520);
/// PVH's `hvm_start_info`; its module list and memory map follow in the same page.
pub const PVH_START_INFO: GuestAddress = GuestAddress(0x6000);
/// Linux's `boot_params`, also called the zero page.
pub const BOOT_PARAMS: GuestAddress = GuestAddress(0x7000);
/// The top-level page table.
pub const PML4: GuestAddress = GuestAddress(0x9000);
/// The page-directory-pointer table.
pub const PDPT: GuestAddress = GuestAddress(0xa000);
/// The first of four page directories (0xb000 up to 0xf000), 1 GiB each in pages of 2 MiB.
pub const PAGE_DIRECTORIES: GuestAddress = GuestAddress(0xb000);
/// The command line, NUL-terminated, at most [`COMMAND_LINE_SIZE`] bytes.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Bytes of a command line with its NUL (`COMMAND_LINE_SIZE` of Linux on x86).
pub const COMMAND_LINE_SIZE: usize = 2048;
/// Where low RAM ends for the guest and the MP table begins: the last KiB of the 640 KiB of a PC,
/// one of the places where the MP specification has systems look for it.
pub const MP_TABLE: GuestAddress = GuestAddress(0x9_fc00);
/// The first ACPI table, the RSDP.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// The first byte that a kernel may take: 1 MiB, where the ACPI tables end too.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(0x10_0000);
/// The hole of the device windows: no RAM from here, 3 GiB, ...
pub const HOLE_START: GuestAddress = GuestAddress(0xc000_0000);
/// ... up to here, 4 GiB.
pub const HOLE_END: GuestAddress = GuestAddress(0x1_0000_0000);
/// The I/O APIC's registers.
pub const IOAPIC: GuestAddress = GuestAddress(0xfec0_0000);
/// Every vCPU's local APIC registers.
pub const LOCAL_APIC: GuestAddress = GuestAddress(0xfee0_0000);
