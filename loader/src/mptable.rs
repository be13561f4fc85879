//! The MP table (Intel MultiProcessor Specification 1.4): processors and interrupts for a guest
//! without ACPI.
//!
//! One ISA bus, whose interrupt n is pin n of the one I/O APIC, for all of its pins: so an interrupt
//! that a device is given on the kernel's command line (`virtio_mmio.device=`) is known as well.

use thiserror::Error;
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{ACPI_TABLES, IOAPIC, LOCAL_APIC, MP_TABLE};

/// Why the table cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MpTableError {
    /// The table has 8 bits for an id.
    #[error("the APIC id {id} does not fit into an MP table, whose highest is {HIGHEST_ID}")]
    ApicId {
        /// The first id that is too high.
        id: u32,
    },
    /// The I/O APIC needs an id of its own, and the processors have taken all.
    #[error("the processors leave no APIC id up to {HIGHEST_ID} for the I/O APIC")]
    NoIdLeft,
    /// The table does not fit into its place.
    #[error("the MP table takes {size} bytes; there is room for {limit}")]
    TooLarge {
        /// Bytes of the table.
        size: u64,
        /// The most that fit.
        limit: u64,
    },
    /// There is no memory below 1 MiB.
    #[error("cannot write the MP table at {address:#x} in guest memory")]
    Memory {
        /// Where, guest-physical.
        address: u64,
        /// The reason.
        source: GuestMemoryError,
    },
}

/// 255 is the broadcast address.
const HIGHEST_ID: u8 = 254;
const SPEC_1_4: u8 = 4;
/// The version register of an integrated local APIC, and of KVM's I/O APIC.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
const IOAPIC_PINS: u8 = 24;
const ISA_BUS: u8 = 0;

const TYPE_PROCESSOR: u8 = 0;
const TYPE_BUS: u8 = 1;
const TYPE_IO_APIC: u8 = 2;
const TYPE_IO_INTERRUPT: u8 = 3;
const TYPE_LOCAL_INTERRUPT: u8 = 4;

const ENABLED: u8 = 1;
const BOOT_PROCESSOR: u8 = 2;
const INTERRUPT: u8 = 0;
const NMI: u8 = 1;
const EXTERNAL_INTERRUPT: u8 = 3;
const ALL_LOCAL_APICS: u8 = 0xff;

const POINTER_LEN: usize = 16;
const HEADER_LEN: usize = 44;

/// Writes the floating pointer at [`layout::MP_TABLE`](MP_TABLE) and the table behind it, for
/// processors with these APIC ids, the boot processor first.
///
/// # Errors
///
/// [`MpTableError`] if an id is above 254, none is left for the I/O APIC, or there is no room.
pub fn write<M: GuestMemoryBackend>(memory: &M, apic_ids: &[u32]) -> Result<(), MpTableError> {
    let mut bytes = floating_pointer();
    bytes.extend(configuration_table(apic_ids)?);
    let (size, limit) = (bytes.len() as u64, ACPI_TABLES.0 - MP_TABLE.0);
    if size > limit {
        return Err(MpTableError::TooLarge { size, limit });
    }
    memory
        .write_slice(&bytes, MP_TABLE)
        .map_err(|source| MpTableError::Memory { address: MP_TABLE.0, source })
}

/// Section 4.1.
fn floating_pointer() -> Vec<u8> {
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(low_u32(MP_TABLE.0 + POINTER_LEN as u64));
    // Length in units of 16 bytes, version, checksum; no default configuration, no IMCR.
    pointer.extend([1, SPEC_1_4, 0, 0, 0, 0, 0, 0]);
    set_checksum(&mut pointer, 10);
    pointer
}

/// Sections 4.2 and 4.3.
fn configuration_table(apic_ids: &[u32]) -> Result<Vec<u8>, MpTableError> {
    let entries = entries(apic_ids)?;
    let count: usize = apic_ids.len() + 2 + usize::from(IOAPIC_PINS) + 2;
    let size = HEADER_LEN + entries.len();
    let too_large = |_| MpTableError::TooLarge { size: size as u64, limit: u64::from(u16::MAX) };

    let mut table = b"PCMP".to_vec();
    table.extend(u16::try_from(size).map_err(too_large)?.to_le_bytes());
    table.extend([SPEC_1_4, 0]);
    table.extend(b"SPARKLERSPARKLER    ");
    // No OEM table: pointer and size.
    table.extend([0; 6]);
    table.extend(u16::try_from(count).map_err(too_large)?.to_le_bytes());
    table.extend(low_u32(LOCAL_APIC.0));
    // No extended table.
    table.extend([0; 4]);
    table.extend(entries);
    set_checksum(&mut table, 7);
    Ok(table)
}

/// The entries in the order of their types, as the specification demands.
fn entries(apic_ids: &[u32]) -> Result<Vec<u8>, MpTableError> {
    let ids = apic_ids.iter().map(|&id| match u8::try_from(id) {
        Ok(small) if small <= HIGHEST_ID => Ok(small),
        _ => Err(MpTableError::ApicId { id }),
    });
    let ids = ids.collect::<Result<Vec<u8>, _>>()?;
    let ioapic_id = (0..=HIGHEST_ID).find(|id| !ids.contains(id)).ok_or(MpTableError::NoIdLeft)?;

    let mut entries = Vec::new();
    for (index, &id) in ids.iter().enumerate() {
        let flags = if index == 0 { ENABLED | BOOT_PROCESSOR } else { ENABLED };
        entries.extend([TYPE_PROCESSOR, id, LOCAL_APIC_VERSION, flags]);
        // Signature, features, reserved: the guest asks CPUID.
        entries.extend([0; 16]);
    }
    entries.extend([TYPE_BUS, ISA_BUS]);
    entries.extend(b"ISA   ");
    entries.extend([TYPE_IO_APIC, ioapic_id, IOAPIC_VERSION, ENABLED]);
    entries.extend(low_u32(IOAPIC.0));
    // Trigger mode and polarity are left to the bus.
    for pin in 0..IOAPIC_PINS {
        entries.extend([TYPE_IO_INTERRUPT, INTERRUPT, 0, 0, ISA_BUS, pin, ioapic_id, pin]);
    }
    // LINT0 takes what an 8259 PIC sends, LINT1 takes NMIs.
    entries.extend([
        TYPE_LOCAL_INTERRUPT,
        EXTERNAL_INTERRUPT,
        0,
        0,
        ISA_BUS,
        0,
        ALL_LOCAL_APICS,
        0,
    ]);
    entries.extend([TYPE_LOCAL_INTERRUPT, NMI, 0, 0, ISA_BUS, 0, ALL_LOCAL_APICS, 1]);
    Ok(entries)
}

/// Makes all bytes add up to 0 by the one at `position`.
fn set_checksum(bytes: &mut [u8], position: usize) {
    let sum = bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    if let Some(checksum) = bytes.get_mut(position) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

/// All addresses in the table are below 4 GiB.
fn low_u32(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn read(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
    }

    /// The entries, each with its type first, after pointer and header were checked.
    fn entries(apic_ids: &[u32]) -> Vec<Vec<u8>> {
        let memory = memory();
        write(&memory, apic_ids).unwrap();
        let pointer = read(&memory, 0x9_fc00, 16);
        assert_eq!((&pointer[..4], sum(&pointer)), (&b"_MP_"[..], 0));
        assert_eq!(pointer[4..10], [0x10, 0xfc, 9, 0, 1, 4]);

        let header = read(&memory, 0x9_fc10, 44);
        let len = usize::from(u16::from_le_bytes([header[4], header[5]]));
        let table = read(&memory, 0x9_fc10, len);
        assert_eq!((&table[..4], sum(&table)), (&b"PCMP"[..], 0));
        assert_eq!(table[36..40], [0, 0, 0xe0, 0xfe]);
        let mut entries = Vec::new();
        let mut rest = &table[44..];
        while let Some(kind) = rest.first() {
            let (entry, tail) = rest.split_at(if *kind == TYPE_PROCESSOR { 20 } else { 8 });
            entries.push(entry.to_vec());
            rest = tail;
        }
        assert_eq!(usize::from(u16::from_le_bytes([header[34], header[35]])), entries.len());
        entries
    }

    #[test]
    fn describes_the_machine() {
        let entries = entries(&[0, 1]);
        assert_eq!(entries[0][..4], [0, 0, 0x14, 3]);
        assert_eq!(entries[1][..4], [0, 1, 0x14, 1]);
        assert_eq!(entries[2], *b"\x01\x00ISA   ");
        assert_eq!(entries[3], [2, 2, 0x11, 1, 0, 0, 0xc0, 0xfe]);
        for pin in 0..24 {
            let entry = &entries[4 + usize::from(pin)];
            assert_eq!(*entry, [3, 0, 0, 0, 0, pin, 2, pin], "identity");
        }
        assert_eq!(entries[28], [4, 3, 0, 0, 0, 0, 0xff, 0]);
        assert_eq!(entries[29], [4, 1, 0, 0, 0, 0, 0xff, 1]);
        assert_eq!(entries.len(), 30);
    }

    #[test]
    fn up_to_all_ids_but_one() {
        let ids: Vec<u32> = (0..254).collect();
        assert_eq!(entries(&ids).len(), 254 + 28);
        let ids: Vec<u32> = (0..255).collect();
        assert!(matches!(write(&memory(), &ids), Err(MpTableError::NoIdLeft)));
        assert!(matches!(write(&memory(), &[0, 255]), Err(MpTableError::ApicId { id: 255 })));
        let many = vec![0; 5000];
        assert!(matches!(write(&memory(), &many), Err(MpTableError::TooLarge { .. })));
    }

    #[test]
    fn needs_memory_below_1_mib() {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        assert!(matches!(write(&memory, &[0]), Err(MpTableError::Memory { .. })));
    }
}
