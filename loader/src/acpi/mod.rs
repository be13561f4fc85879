//! ACPI tables (ACPI 6.5): what a guest learns of processors, interrupts, devices, power-off and
//! reset.
//!
//! The platform is *hardware-reduced*: none of the PC's fixed ACPI hardware, no SCI, no PIC, no
//! PIT. Sleep and reset go through the three registers that [`AcpiConfig`] names.

mod dsdt;
mod fadt;
mod madt;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::layout::{ACPI_TABLES, HIGH_MEMORY};

/// What the tables tell the guest of the machine.
#[derive(Clone, Debug)]
pub struct AcpiConfig<'a> {
    /// The APIC id of every vCPU, the boot processor first. An id of 255 or above is announced for
    /// x2APIC mode.
    pub apic_ids: &'a [u32],
    /// I/O port of the sleep control register. For power-off the guest writes
    /// `s5_sleep_type << 2 | 0x20` (SLP_EN) to it.
    pub sleep_control: u16,
    /// I/O port of the sleep status register, where the guest clears WAK_STS by writing 0x80.
    pub sleep_status: u16,
    /// SLP_TYP of S5, soft off: 0 to 7.
    pub s5_sleep_type: u8,
    /// I/O port of the reset register.
    pub reset: u16,
    /// The value that resets the machine when written to `reset`.
    pub reset_value: u8,
    /// The serial port, if there is one.
    pub uart: Option<Uart>,
    /// The power button's interrupt, if it has one: edge-triggered, active high, not shared. An edge tells
    /// that the button was pressed.
    pub power_button: Option<u32>,
    /// The virtio devices, in the order in which the guest shall find them: at most 4096.
    pub virtio_mmio: &'a [VirtioMmio],
}

/// A 16550-compatible serial port at eight I/O ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uart {
    /// The first I/O port, 0x3f8 for COM1.
    pub port: u16,
    /// Its interrupt, edge-triggered and active high: 4 for COM1.
    pub gsi: u32,
}

/// A virtio device behind the MMIO transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtioMmio {
    /// Guest-physical address of its registers, which end below 4 GiB.
    pub address: u64,
    /// Bytes of its register window.
    pub size: u32,
    /// Its interrupt: edge-triggered, active high, and maybe shared with others.
    pub gsi: u32,
}

/// Why the tables cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// The sleep type of S5 has more than three bits.
    #[error("the sleep type of S5 is {value}; it has three bits, so 7 is the highest")]
    SleepType {
        /// The value given.
        value: u8,
    },
    /// There are more virtio devices than names for them.
    #[error("{count} virtio devices are too many for the ACPI tables; {limit} can be named")]
    TooManyDevices {
        /// Devices given.
        count: usize,
        /// The most that can be named.
        limit: usize,
    },
    /// A virtio device's registers are not below 4 GiB.
    #[error("the virtio device at {address:#x} with {size:#x} bytes does not end below 4 GiB")]
    DeviceAddress {
        /// Its address.
        address: u64,
        /// Bytes of its window.
        size: u32,
    },
    /// The tables do not fit between [`layout::ACPI_TABLES`](ACPI_TABLES) and 1 MiB.
    #[error("the ACPI tables take {size} bytes; there is room for {limit}")]
    TooLarge {
        /// Bytes of all tables.
        size: u64,
        /// The most that fit.
        limit: u64,
    },
    /// There is no memory below 1 MiB.
    #[error("cannot write the ACPI tables at {address:#x} in guest memory")]
    Memory {
        /// Where, guest-physical.
        address: u64,
        /// The reason.
        source: GuestMemoryError,
    },
}

const OEM_ID: [u8; 6] = *b"SPARKL";
const OEM_TABLE_ID: [u8; 8] = *b"SPARKLER";
const OEM_REVISION: u32 = 1;

/// Tables begin at multiples of this.
const ALIGNMENT: u64 = 16;

/// Writes RSDP, XSDT, FADT, MADT and DSDT from [`layout::ACPI_TABLES`](ACPI_TABLES) on, and returns
/// where the RSDP lies, for [`BootConfig::rsdp`](crate::BootConfig::rsdp).
///
/// # Errors
///
/// [`AcpiError`] if a value cannot be told in these tables, or they do not fit.
pub fn write<M: GuestMemoryBackend>(
    memory: &M,
    config: &AcpiConfig<'_>,
) -> Result<GuestAddress, AcpiError> {
    // The RSDP has a fixed size and comes first; it is written last, when it is known what to
    // point at.
    let rsdp_address = ACPI_TABLES;
    let mut tables =
        Placer { next: align(rsdp_address.0 + Rsdp::len() as u64), tables: Vec::new() };
    let dsdt = tables.place(dsdt::build(config)?);
    let fadt = tables.place(bytes(&fadt::build(config, dsdt)));
    let madt = tables.place(madt::build(config.apic_ids));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = tables.place(bytes(&xsdt));
    tables.tables.push((rsdp_address.0, bytes(&Rsdp::new(OEM_ID, xsdt))));

    if tables.next > HIGH_MEMORY.0 {
        return Err(AcpiError::TooLarge {
            size: tables.next - rsdp_address.0,
            limit: HIGH_MEMORY.0 - rsdp_address.0,
        });
    }
    for (address, table) in &tables.tables {
        memory
            .write_slice(table, GuestAddress(*address))
            .map_err(|source| AcpiError::Memory { address: *address, source })?;
    }
    Ok(rsdp_address)
}

/// Hands out addresses, one table behind the other.
struct Placer {
    next: u64,
    tables: Vec<(u64, Vec<u8>)>,
}

impl Placer {
    fn place(&mut self, table: Vec<u8>) -> u64 {
        let address = self.next;
        self.next = align(address + table.len() as u64);
        self.tables.push((address, table));
        address
    }
}

fn align(address: u64) -> u64 {
    address.next_multiple_of(ALIGNMENT)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
