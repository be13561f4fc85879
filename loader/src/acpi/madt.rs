//! The Multiple APIC Description Table (section 5.2.12): processors and interrupt controllers.
//!
//! GSI n is pin n of the one I/O APIC, for ISA interrupts too, so no source override is needed.

use acpi_tables::sdt::Sdt;

use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};
use crate::layout::{IOAPIC, LOCAL_APIC};

/// Of ACPI 6.5. acpi_tables' own MADT says 1 and knows no x2APIC.
const REVISION: u8 = 6;
const HEADER_LEN: u32 = 36;

const TYPE_LOCAL_APIC: u8 = 0;
const TYPE_IO_APIC: u8 = 1;
const TYPE_LOCAL_APIC_NMI: u8 = 4;
const TYPE_LOCAL_X2APIC: u8 = 9;
const TYPE_LOCAL_X2APIC_NMI: u8 = 10;

const PROCESSOR_ENABLED: u32 = 1;
/// The lowest id that needs the x2APIC form; 255 is the broadcast address of the other.
const FIRST_X2APIC_ID: u32 = 255;
/// The pin of the local APIC that takes NMIs.
const NMI_LINT: u8 = 1;

pub(super) fn build(apic_ids: &[u32]) -> Vec<u8> {
    let mut table = Sdt::new(*b"APIC", HEADER_LEN, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    table.append_slice(&low_u32(LOCAL_APIC.0));
    // No PCAT_COMPAT: the guest shall leave the two 8259 PICs alone.
    table.append_slice(&0u32.to_le_bytes());
    let mut entries = Vec::new();
    for (uid, &apic_id) in (0u32..).zip(apic_ids) {
        add_processor(&mut entries, uid, apic_id);
    }
    entries.extend([TYPE_IO_APIC, 12, 0, 0]);
    entries.extend(low_u32(IOAPIC.0));
    entries.extend(0u32.to_le_bytes());
    // Of all processors, edge-triggered and active high as the bus has it.
    entries.extend([TYPE_LOCAL_APIC_NMI, 6, 0xff, 0, 0, NMI_LINT]);
    if apic_ids.iter().any(|&id| id >= FIRST_X2APIC_ID) {
        entries.extend([
            TYPE_LOCAL_X2APIC_NMI,
            12,
            0,
            0,
            0xff,
            0xff,
            0xff,
            0xff,
            NMI_LINT,
            0,
            0,
            0,
        ]);
    }
    table.append_slice(&entries);
    table.as_slice().to_vec()
}

fn add_processor(entries: &mut Vec<u8>, uid: u32, apic_id: u32) {
    match (u8::try_from(uid), u8::try_from(apic_id)) {
        (Ok(uid), Ok(id)) if apic_id < FIRST_X2APIC_ID => {
            entries.extend([TYPE_LOCAL_APIC, 8, uid, id]);
            entries.extend(PROCESSOR_ENABLED.to_le_bytes());
        }
        _ => {
            entries.extend([TYPE_LOCAL_X2APIC, 16, 0, 0]);
            for field in [apic_id, PROCESSOR_ENABLED, uid] {
                entries.extend(field.to_le_bytes());
            }
        }
    }
}

/// The controllers' registers lie below 4 GiB.
fn low_u32(address: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = address.to_le_bytes();
    [a, b, c, d]
}
