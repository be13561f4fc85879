//! What can go wrong while a machine's memory is being filled.

use thiserror::Error;
use vm_memory::GuestMemoryError;

use crate::bzimage::BzImageError;
use crate::elf::ElfError;
use crate::image::{ImageError, ImageName};

/// Why a kernel cannot be loaded into this memory.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The kernel or the initrd cannot be read, or is no such thing.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The ELF kernel is broken, not for this machine, or does not fit.
    #[error("cannot load the ELF kernel {image}")]
    Elf {
        /// Which kernel.
        image: ImageName,
        /// The reason.
        source: ElfError,
    },
    /// The bzImage is broken, cannot be unpacked, or does not fit.
    #[error("cannot load the bzImage {image}")]
    BzImage {
        /// Which kernel.
        image: ImageName,
        /// The reason.
        source: BzImageError,
    },
    /// There is no memory for a copy of the kernel that machines share.
    #[error("cannot keep the kernel {image} in memory")]
    Share {
        /// Which kernel.
        image: ImageName,
        /// The reason.
        source: std::io::Error,
    },
    /// A folder for unpacked kernels cannot be used.
    #[cfg(feature = "kernel-cache")]
    #[error("cannot keep unpacked kernels in `{}`", folder.display())]
    Cache {
        /// Which folder.
        folder: std::path::PathBuf,
        /// The reason.
        source: crate::cache::CacheError,
    },
    /// The kernel's own limit for the command line is below the general one.
    #[error("the command line has {length} bytes; the kernel {image} takes at most {limit}")]
    CmdlineTooLong {
        /// Which kernel.
        image: ImageName,
        /// Bytes of the command line.
        length: usize,
        /// The most that this kernel reads (`cmdline_size` of its setup header).
        limit: usize,
    },
    /// There is no room for the initrd behind the kernel.
    #[error(
        "the initrd {image} has {size} bytes; {available} bytes of guest memory are left for it \
         (below {limit:#x}, above the kernel)"
    )]
    InitrdTooLarge {
        /// Which initrd.
        image: ImageName,
        /// Its size in bytes.
        size: u64,
        /// Room in bytes between the kernel's end and `limit`.
        available: u64,
        /// The guest-physical address that the initrd must end at or below.
        limit: u64,
    },
    /// The guest's memory is in more pieces than the boot protocol can tell.
    #[error("guest memory has {regions} pieces; the boot protocol can tell of {limit}")]
    TooManyRegions {
        /// Pieces after neighbours were joined.
        regions: usize,
        /// The most that fit.
        limit: usize,
    },
    /// Boot structures lie below 1 MiB, and there is no memory there.
    #[error("cannot write {what} at {address:#x} in guest memory")]
    Memory {
        /// What was to be written.
        what: &'static str,
        /// Where, guest-physical.
        address: u64,
        /// The reason.
        source: GuestMemoryError,
    },
}
