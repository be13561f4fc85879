//! ACPI tables

use thiserror::Error;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// What the tables tell the guest of the machine.
#[derive(Clone, Debug)]
pub struct AcpiConfig<'a> {
    /// The APIC id of every vCPU, the boot processor first.
    pub apic_ids: &'a [u32],
    /// I/O port of the sleep control register. For power-off the guest writes
    /// `s5_sleep_type << 2 | 0x20` (SLP_EN) to it.
    pub sleep_control: u16,
    /// I/O port of the sleep status register.
    pub sleep_status: u16,
    /// SLP_TYP of S5, soft off: 0 to 7.
    pub s5_sleep_type: u8,
    /// I/O port of the reset register.
    pub reset: u16,
    /// The value that resets the machine when written to `reset`.
    pub reset_value: u8,
    /// The serial port, if there is one.
    pub uart: Option<Uart>,
    /// The virtio devices, in the order in which the guest shall find them.
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
    /// Its interrupt: level-triggered, active high, and maybe shared with others.
    pub gsi: u32,
}

/// Why the tables cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AcpiError {
    /// No memory below 1 MiB.
    #[error("cannot write the ACPI tables at {address:#x} in guest memory")]
    Memory {
        /// Where, guest-physical.
        address: u64,
        /// The reason.
        source: GuestMemoryError,
    },
}

/// Writes the tables from [`layout::ACPI_TABLES`](crate::layout::ACPI_TABLES) on and returns where
/// the RSDP lies.
///
/// # Errors
///
/// [`AcpiError`]
pub fn write<M: GuestMemoryBackend>(
    memory: &M,
    config: &AcpiConfig<'_>,
) -> Result<GuestAddress, AcpiError> {
    let _ = (memory, config);
    todo!()
}
