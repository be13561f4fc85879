use std::io;
use std::path::PathBuf;

use thiserror::Error;
use vm_memory::GuestRegionCollectionError;

use super::{HugePageSize, MemorySize, RegionKind};

/// Why guest memory cannot be had as it was asked for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The mapping was refused: address space, a limit of the host, or the file's own rules.
    #[error("cannot map {size} of guest memory")]
    Map {
        /// How much.
        size: MemorySize,
        /// The reason.
        source: io::Error,
    },
    /// A shared region cannot be mapped: its file was not opened for reading, or a limit of the host.
    #[error("cannot map the shared region of {size} at {start:#x}")]
    MapShared {
        /// Its first address in the guest.
        start: u64,
        /// Its size.
        size: MemorySize,
        /// The reason.
        source: io::Error,
    },
    /// The pool of huge pages is too small.
    #[error(
        "guest memory needs {needed} huge pages of {size} and {free} are free: make room with \
         `echo {target} >{}/nr_hugepages`{}",
        pool.display(),
        size.other_way(*target)
    )]
    HugePages {
        /// Their size.
        size: HugePageSize,
        /// How many are needed.
        needed: u64,
        /// How many the pool can still give.
        free: u64,
        /// How many the pool would have to hold in all.
        target: u64,
        /// The pool's folder in `/sys`.
        pool: PathBuf,
    },
    /// The host has no huge pages of this size at all.
    #[error(
        "this host has no huge pages of {size} ({} is not there): use another size, or a kernel \
         and processor that have them",
        pool.display()
    )]
    HugePageSize {
        /// The size.
        size: HugePageSize,
        /// The folder in `/sys` that is not there.
        pool: PathBuf,
    },
    /// A region does not consist of whole pages.
    #[error(
        "{kind} of {size} at {start:#x} is not possible: size and address must be multiples of \
         {page}, the page size of what is behind it"
    )]
    Alignment {
        /// Which region.
        kind: RegionKind,
        /// Its first address.
        start: u64,
        /// Its size.
        size: MemorySize,
        /// The page size.
        page: MemorySize,
    },
    /// A region lies where no region may lie.
    #[error(
        "{kind} of {size} at {start:#x} is not possible: it must lie between 4 GiB and the end of \
         what the processor can address, {limit:#x}"
    )]
    Place {
        /// Which region.
        kind: RegionKind,
        /// Its first address.
        start: u64,
        /// Its size.
        size: MemorySize,
        /// The first address that cannot be.
        limit: u64,
    },
    /// Two regions overlap.
    #[error("{kind} at {start:#x} overlaps {other} at {other_start:#x}")]
    Overlap {
        /// The one.
        kind: RegionKind,
        /// Where it starts.
        start: u64,
        /// The other.
        other: RegionKind,
        /// Where that starts.
        other_start: u64,
    },
    /// More memory regions than a machine can have.
    #[error("{requested} regions of memory are not possible: at most {limit} are")]
    TooManyRegions {
        /// How many were asked for.
        requested: usize,
        /// The most.
        limit: usize,
    },
    /// Both a file and huge pages were asked for.
    #[error(
        "huge pages of {size} cannot be put behind memory in a file of the caller's: give a file \
         on a hugetlbfs, or a memfd made with MFD_HUGETLB"
    )]
    HugePagesInFile {
        /// Their size.
        size: HugePageSize,
    },
    /// The file for guest memory is no regular file (a memfd is one) or not open for both reading
    /// and writing.
    #[error("the file for guest memory must be a regular file or memfd, open to read and write")]
    FileKind,
    /// The file for guest memory is too short.
    #[error(
        "the file for guest memory has {size} bytes: with an offset of {offset} it needs {needed}"
    )]
    FileTooSmall {
        /// Its size in bytes.
        size: u64,
        /// Where guest memory begins in it.
        offset: u64,
        /// How long it would have to be.
        needed: u64,
    },
    /// The offset in the file for guest memory is not a multiple of its page size.
    #[error("the offset {offset} in the file for guest memory is not a multiple of {page}")]
    FileOffset {
        /// The offset.
        offset: u64,
        /// The page size of the file.
        page: MemorySize,
    },
    /// The file for guest memory cannot be made, looked at, or emptied.
    #[error("cannot {what} the file for guest memory")]
    File {
        /// What was tried.
        what: &'static str,
        /// The error.
        source: io::Error,
    },
    /// Memory cannot be taken in advance.
    #[error("cannot take {size} of guest memory in advance (needs Linux 5.14 and so much memory)")]
    Prefault {
        /// How much.
        size: MemorySize,
        /// The reason; `EINVAL` from a kernel that is too old.
        source: io::Error,
    },
    /// The file for guest memory cannot have all its room in advance ([`MemoryBacking::prefault`]).
    ///
    /// [`MemoryBacking::prefault`]: super::MemoryBacking::prefault
    #[error(
        "no room for {size} of guest memory in its file: the file system is full, or the file was cut"
    )]
    NoRoomInFile {
        /// How much of the memory was to be taken.
        size: MemorySize,
        /// The reason, `EFAULT`.
        source: io::Error,
    },
    /// The host's kernel takes no advice about transparent huge pages.
    #[error("cannot set transparent huge pages for guest memory")]
    TransparentHugePages(#[source] io::Error),
    /// Regions that passed the checks were refused all the same.
    #[error("cannot put guest memory together")]
    Collection(#[from] GuestRegionCollectionError),
}

/// Why a file cannot be a [`SharedRegion`](super::SharedRegion).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SharedRegionError {
    /// It cannot be opened.
    #[error("cannot open {} as a shared region", path.display())]
    Open {
        /// Its path.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Its size cannot be asked for.
    #[error("cannot look at the file of a shared region")]
    Inspect(#[source] io::Error),
    /// It is no regular file.
    #[error("a shared region must be a regular file or a memfd")]
    NotRegular,
    /// It is empty.
    #[error("a shared region must not be empty")]
    Empty,
}
