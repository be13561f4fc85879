//! MP

use thiserror::Error;
use vm_memory::{GuestMemoryBackend, GuestMemoryError};

/// Why the table cannot be written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MpTableError {
    /// No memory there.
    #[error("cannot write the MP table at {address:#x} in guest memory")]
    Memory {
        /// Where, guest-physical.
        address: u64,
        /// The reason.
        source: GuestMemoryError,
    },
}

/// Writes the table at [`layout::MP_TABLE`](crate::layout::MP_TABLE), for processors with these
/// APIC ids, the boot processor first.
///
/// # Errors
///
/// [`MpTableError`]
pub fn write<M: GuestMemoryBackend>(memory: &M, apic_ids: &[u32]) -> Result<(), MpTableError> {
    let _ = (memory, apic_ids);
    todo!()
}
