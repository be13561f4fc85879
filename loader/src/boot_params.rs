//! `boot_params`, what the Linux boot protocol hands a kernel (Documentation/arch/x86/boot.rst and
//! zero-page.rst of the kernel).

use linux_loader::bootparam::{LOADED_HIGH, boot_e820_entry, boot_params, setup_header};
use vm_memory::{Bytes, GuestMemoryBackend};

use crate::cmdline::Cmdline;
use crate::e820;
use crate::error::LoadError;
use crate::kernel::BootInfo;
use crate::layout::{BOOT_PARAMS, COMMAND_LINE};

/// "HdrS".
pub(crate) const HEADER_MAGIC: u32 = 0x5372_6448;
pub(crate) const BOOT_FLAG: u16 = 0xaa55;

/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// What is filled in below is that of protocol 2.15.
const PROTOCOL_VERSION: u16 = 0x020f;
const DEFAULT_ALIGNMENT: u32 = 0x100_0000;

/// Writes `boot_params`. `header` is the setup header of a bzImage; a vmlinux has none.
pub(crate) fn write<M: GuestMemoryBackend>(
    memory: &M,
    header: Option<setup_header>,
    info: &BootInfo,
) -> Result<(), LoadError> {
    let mut params = boot_params { hdr: fill(header, info), ..Default::default() };
    params.acpi_rsdp_addr = info.rsdp.map_or(0, |address| address.0);
    // The map has at most e820::LIMIT entries, as many as the table.
    params.e820_entries = u8::try_from(info.e820.len()).unwrap_or(u8::MAX);
    let mut table = params.e820_table;
    for (slot, entry) in table.iter_mut().zip(&info.e820) {
        *slot = to_boot_e820(entry);
    }
    params.e820_table = table;
    memory.write_obj(params, BOOT_PARAMS).map_err(|source| LoadError::Memory {
        what: "boot_params",
        address: BOOT_PARAMS.0,
        source,
    })
}

fn fill(header: Option<setup_header>, info: &BootInfo) -> setup_header {
    let mut header = header.unwrap_or_else(|| {
        #[expect(clippy::cast_possible_truncation, reason = "2047")]
        let cmdline_size = Cmdline::MAX_LEN as u32;
        setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: PROTOCOL_VERSION,
            kernel_alignment: DEFAULT_ALIGNMENT,
            cmdline_size,
            ..Default::default()
        }
    });
    header.type_of_loader = UNDEFINED_LOADER;
    // No heap for real-mode code, no KASLR flag: neither setup code nor decompressor run.
    header.loadflags = LOADED_HIGH;
    header.setup_data = 0;
    // Both lie below 4 GiB: the line at a fixed place, the initrd below the hole.
    header.cmd_line_ptr = u32::try_from(COMMAND_LINE.0).unwrap_or(0);
    let (start, size) = info.initrd.unwrap_or((0, 0));
    header.ramdisk_image = u32::try_from(start).unwrap_or(0);
    header.ramdisk_size = u32::try_from(size).unwrap_or(0);
    header
}

fn to_boot_e820(entry: &e820::Entry) -> boot_e820_entry {
    boot_e820_entry { addr: entry.start, size: entry.size, r#type: entry.kind as u32 }
}
