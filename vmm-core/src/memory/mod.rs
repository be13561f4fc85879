//! Guest memory: how much, where it lies, and what is behind it on the host.

mod backing;
mod error;
mod file;
mod huge_pages;
mod regions;
mod shared_region;
mod size;

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};

pub use self::backing::MemoryBacking;
pub use self::error::{MemoryError, SharedRegionError};
pub use self::huge_pages::HugePageSize;
pub(crate) use self::regions::Ranges;
pub use self::regions::RegionKind;
pub use self::shared_region::SharedRegion;
pub(crate) use self::shared_region::SharedRegions;
pub use self::size::{MemorySize, ParseMemorySizeError};
use crate::sys;

/// How much of guest memory the host holds for it now, in bytes.
pub(crate) fn resident(memory: &GuestMemoryMmap) -> u64 {
    memory.iter().map(sys::memory::resident).fold(0, u64::saturating_add)
}
