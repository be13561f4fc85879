//! `hvm_start_info`, what PVH hands a kernel (xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend};

use crate::e820;
use crate::error::LoadError;
use crate::kernel::BootInfo;
use crate::layout::{COMMAND_LINE, PVH_START_INFO};

/// The memory map came with version 1.
const VERSION: u32 = 1;
const MODULES: u64 = PVH_START_INFO.0 + size_of::<hvm_start_info>() as u64;
const MEMORY_MAP: u64 = MODULES + size_of::<hvm_modlist_entry>() as u64;
const _: () = assert!(
    MEMORY_MAP + (e820::LIMIT * size_of::<hvm_memmap_table_entry>()) as u64
        <= PVH_START_INFO.0 + 0x1000
);

/// Writes `hvm_start_info` with the module list (the initrd, if any) and the memory map behind it.
pub(crate) fn write<M: GuestMemoryBackend>(memory: &M, info: &BootInfo) -> Result<(), LoadError> {
    let start_info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        version: VERSION,
        nr_modules: u32::from(info.initrd.is_some()),
        modlist_paddr: if info.initrd.is_some() { MODULES } else { 0 },
        cmdline_paddr: COMMAND_LINE.0,
        rsdp_paddr: info.rsdp.map_or(0, |address| address.0),
        memmap_paddr: MEMORY_MAP,
        memmap_entries: u32::try_from(info.e820.len()).unwrap_or(u32::MAX),
        ..Default::default()
    };
    write_obj(memory, "hvm_start_info", start_info, PVH_START_INFO.0)?;
    if let Some((paddr, size)) = info.initrd {
        let module = hvm_modlist_entry { paddr, size, ..Default::default() };
        write_obj(memory, "the PVH module list", module, MODULES)?;
    }
    let addresses = (MEMORY_MAP..).step_by(size_of::<hvm_memmap_table_entry>());
    for (entry, address) in info.e820.iter().zip(addresses) {
        let entry = hvm_memmap_table_entry {
            addr: entry.start,
            size: entry.size,
            type_: entry.kind as u32,
            reserved: 0,
        };
        write_obj(memory, "the PVH memory map", entry, address)?;
    }
    Ok(())
}

fn write_obj<M: GuestMemoryBackend, T: ByteValued>(
    memory: &M,
    what: &'static str,
    value: T,
    address: u64,
) -> Result<(), LoadError> {
    memory.write_obj(value, GuestAddress(address)).map_err(|source| LoadError::Memory {
        what,
        address,
        source,
    })
}
