//! The Fixed ACPI Description Table (section 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use super::{AcpiConfig, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IA-PC boot architecture flags (section 5.2.9.3): no VGA to probe, no CMOS clock. The flags for
/// legacy devices and for an 8042 stay off: there is no keyboard controller to look for.
const VGA_NOT_PRESENT: u16 = 1 << 2;
const CMOS_RTC_NOT_PRESENT: u16 = 1 << 5;

/// Names the hypervisor that made the tables.
const HYPERVISOR: [u8; 8] = *b"SPARKLER";

/// The table, which points to the DSDT at `dsdt`.
pub(super) fn build(config: &AcpiConfig<'_>, dsdt: u64) -> FADT {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        // Caches behave, as the flag is required to say.
        .flag(Flags::Wbinvd)
        // No fixed power and sleep buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup)
        .flag(Flags::HwReducedAcpi);
    fadt.iapc_boot_arch = (VGA_NOT_PRESENT | CMOS_RTC_NOT_PRESENT).into();
    fadt.reset_reg = byte_port(config.reset);
    fadt.reset_value = config.reset_value;
    fadt.sleep_control_reg = byte_port(config.sleep_control);
    fadt.sleep_status_reg = byte_port(config.sleep_status);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(HYPERVISOR).into();
    fadt.finalize()
}

fn byte_port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}
