//! What the kernel is handed: boot_params or hvm_start_info, memory map, command line, initrd.

use linux_loader::bootparam::boot_params;
use linux_loader::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use sparkler_loader::{BootConfig, Cmdline, ImageError, Initrd, Kernel, LoadError, Protocol};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::support::{BzImage, Elf, MIB, PAGE, bytes, load, memory, read};

const MAP: [(u64, u64, u32); 3] =
    [(0, 0x9_fc00, 1), (0x9_fc00, 0x6_0400, 2), (0x10_0000, 31 * MIB, 1)];

fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, data).unwrap();
    encoder.finish().unwrap()
}

fn e820(params: &boot_params) -> Vec<(u64, u64, u32)> {
    let (table, entries) = (params.e820_table, usize::from(params.e820_entries));
    table[..entries].iter().map(|entry| (entry.addr, entry.size, entry.r#type)).collect()
}

#[test]
fn boot_params_of_a_vmlinux() {
    let memory = memory(32);
    let cmdline = Cmdline::new("console=ttyS0 panic=-1").unwrap();
    let initrd = Initrd::bytes(vec![0xab; 5000]);
    let rsdp = Some(GuestAddress(0xe_0000));
    let config = BootConfig { cmdline: &cmdline, initrd: Some(&initrd), rsdp, reserved: &[] };
    Kernel::bytes(Elf::default().build()).load(&memory, &config).unwrap();

    assert_eq!(bytes(&memory, 0x2_0000, 23), b"console=ttyS0 panic=-1\0");
    let initrd_address = 32 * MIB - 2 * PAGE;
    assert_eq!(bytes(&memory, initrd_address, 5000), [0xab; 5000]);

    let params: boot_params = read(&memory, 0x7000);
    assert_eq!({ params.acpi_rsdp_addr }, 0xe_0000);
    assert_eq!(e820(&params), MAP);
    let header = params.hdr;
    assert_eq!(({ header.boot_flag }, { header.header }), (0xaa55, 0x5372_6448));
    assert_eq!((header.type_of_loader, header.loadflags), (0xff, 1));
    assert_eq!(({ header.cmd_line_ptr }, { header.cmdline_size }), (0x2_0000, 2047));
    assert_eq!(u64::from(header.ramdisk_image), initrd_address);
    assert_eq!({ header.ramdisk_size }, 5000);
}

#[test]
fn the_setup_header_of_a_bzimage_is_carried_over() {
    let memory = memory(32);
    let image = BzImage::new(gzip(&Elf::default().build()));
    load(&Kernel::bytes(image.build()), &memory).unwrap();
    let params: boot_params = read(&memory, 0x7000);
    let header = params.hdr;
    assert_eq!(({ header.version }, { header.kernel_alignment }), (0x20f, 0x20_0000));
    assert_eq!(({ header.pref_address }, { header.init_size }), (16 * MIB, 0x20_0000));
    assert_eq!((header.type_of_loader, header.loadflags), (0xff, 1));
    assert_eq!({ header.setup_data }, 0, "no list from the file");
    assert_eq!(({ header.ramdisk_image }, { header.ramdisk_size }), (0, 0));
    assert_eq!({ header.cmd_line_ptr }, 0x2_0000);
    assert_eq!(e820(&params), MAP);
}

#[test]
fn start_info_of_pvh() {
    let memory = memory(32);
    let cmdline = Cmdline::new("x").unwrap();
    let initrd = Initrd::bytes(vec![0xab; 4096]);
    let rsdp = Some(GuestAddress(0xe_0000));
    let config = BootConfig { cmdline: &cmdline, initrd: Some(&initrd), rsdp, reserved: &[] };
    let elf = Elf { pvh_entry: Some(0x100_0040), ..Elf::default() };
    let kernel = Kernel::bytes(elf.build()).with_protocol(Protocol::Pvh);
    kernel.load(&memory, &config).unwrap();

    let info: hvm_start_info = read(&memory, 0x6000);
    assert_eq!((info.magic, info.version, info.flags), (0x336e_c578, 1, 0));
    assert_eq!((info.cmdline_paddr, info.rsdp_paddr), (0x2_0000, 0xe_0000));
    assert_eq!((info.nr_modules, info.memmap_entries), (1, 3));
    let module: hvm_modlist_entry = read(&memory, info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (32 * MIB - PAGE, 4096));
    for (i, expected) in (0..).zip(MAP) {
        let entry: hvm_memmap_table_entry = read(&memory, info.memmap_paddr + 24 * i);
        assert_eq!((entry.addr, entry.size, entry.type_), expected);
    }

    load(&kernel, &memory).unwrap();
    let info: hvm_start_info = read(&memory, 0x6000);
    assert_eq!((info.nr_modules, info.modlist_paddr, info.rsdp_paddr), (0, 0, 0));
}

#[test]
fn the_initrd_must_fit_between_kernel_and_limit() {
    let cmdline = Cmdline::default();
    let try_size = |kernel: &Kernel, size: u64| {
        let initrd = Initrd::bytes(vec![1; usize::try_from(size).unwrap()]);
        let config =
            BootConfig { cmdline: &cmdline, initrd: Some(&initrd), rsdp: None, reserved: &[] };
        let memory = memory(32);
        let result = kernel.load(&memory, &config);
        let params: boot_params = read(&memory, 0x7000);
        result.map(|_| u64::from(params.hdr.ramdisk_image))
    };
    // The zero-filled part of the ELF file ends at 17 MiB and three pages.
    let (elf_end, all) = (17 * MIB + 3 * PAGE, 15 * MIB - 3 * PAGE);
    let elf = Kernel::bytes(Elf::default().build());
    assert_eq!(try_size(&elf, all).unwrap(), elf_end);
    let error = try_size(&elf, all + 1).unwrap_err();
    let LoadError::InitrdTooLarge { size, available, limit, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!((size, available, limit), (all + 1, all, 32 * MIB));
    assert!(matches!(try_size(&elf, 64 * MIB), Err(LoadError::InitrdTooLarge { .. })));
    assert!(matches!(try_size(&elf, 0), Err(LoadError::Image(ImageError::Empty { .. }))));

    // A bzImage wants 2 MiB from 16 MiB, and its initrd below 20 MiB.
    let mut image = BzImage::new(gzip(&Elf::default().build()));
    image.initrd_addr_max = 0x13f_ffff;
    let bzimage = Kernel::bytes(image.build());
    assert_eq!(try_size(&bzimage, 2 * MIB).unwrap(), 18 * MIB);
    assert_eq!(try_size(&bzimage, 1).unwrap(), 20 * MIB - PAGE);
    assert!(matches!(try_size(&bzimage, 2 * MIB + 1), Err(LoadError::InitrdTooLarge { .. })));
}

#[test]
fn the_initrd_stays_below_the_hole() {
    let ranges = [(0, 3 << 30), (4 << 30, 1 << 20)];
    let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let (cmdline, initrd) = (Cmdline::default(), Initrd::bytes(vec![1; 100]));
    let config = BootConfig { cmdline: &cmdline, initrd: Some(&initrd), rsdp: None, reserved: &[] };
    Kernel::bytes(Elf::default().build()).load(&memory, &config).unwrap();
    let params: boot_params = read(&memory, 0x7000);
    assert_eq!(u64::from(params.hdr.ramdisk_image), (3 << 30) - PAGE);
    assert_eq!(e820(&params)[2..], [(MIB, (3 << 30) - MIB, 1), (4 << 30, MIB, 1)]);
}

#[test]
fn a_bzimage_may_take_a_shorter_command_line() {
    let mut image = BzImage::new(gzip(&Elf::default().build()));
    image.cmdline_size = 12;
    let error = load(&Kernel::bytes(image.build()), &memory(32)).unwrap_err();
    assert!(matches!(error, LoadError::CmdlineTooLong { length: 13, limit: 12, .. }), "{error}");
    image.cmdline_size = 13;
    load(&Kernel::bytes(image.build()), &memory(32)).unwrap();
}

#[test]
fn memory_without_its_first_mib_is_an_error() {
    let ranges = [(GuestAddress(16 * MIB), 16 << 20)];
    let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
    let error = load(&Kernel::bytes(Elf::default().build()), &memory).unwrap_err();
    assert!(matches!(error, LoadError::Memory { address: 0x2_0000, .. }), "{error}");
}
