use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{
    FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionCollectionError, GuestRegionMmap, MmapRegion,
};

use super::file::MemoryFile;
use super::regions::length;
use super::{HugePageSize, MemoryError, MemorySize, Ranges, RegionKind};
use crate::sys::memory as sys;

pub(super) const PAGE: u64 = 4096;

/// What is behind guest memory on the host. The default is [`private`](Self::private): ordinary pages of
/// this process alone, taken as the guest touches them.
///
/// ```no_run
/// use sparkler::{HugePageSize, Kernel, MemoryBacking, MemorySize, Vm};
///
/// let vm = Vm::builder()
///     .memory(MemorySize::gib(2))
///     .memory_backing(MemoryBacking::private().huge_pages(HugePageSize::TwoMib))
///     .kernel(Kernel::file("/boot/vmlinuz")?)
///     .build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "give it to VmBuilder::memory_backing"]
pub struct MemoryBacking {
    kind: Kind,
    huge_pages: Option<HugePageSize>,
    transparent_huge_pages: Option<bool>,
    prefault: bool,
}

#[derive(Debug)]
enum Kind {
    Private,
    Memfd,
    File { fd: OwnedFd, offset: u64 },
}

impl MemoryBacking {
    /// Anonymous memory of this process alone.
    pub fn private() -> Self {
        Self::of(Kind::Private)
    }

    /// A memfd, which other processes can be given ([`Vm::memory_fd`](crate::Vm::memory_fd)) to see and
    /// change guest memory. It is sealed: its size cannot be changed.
    pub fn memfd() -> Self {
        Self::of(Kind::Memfd)
    }

    /// The caller's file, from `offset` on: a memfd, or a regular file on a tmpfs, a hugetlbfs or a disk.
    /// **What it holds there is discarded**: a machine starts with memory of zeros. First comes the
    /// machine's memory without the hole, then the extra regions in the order of their addresses.
    ///
    /// Whoever makes the file shorter while the machine runs ends the machine, by a crash
    /// ([`CrashReason::MemoryFault`](crate::CrashReason::MemoryFault)) or an error that says "Bad address", or
    /// this process, by `SIGBUS`; that depends on who touches the page. A memfd that allows it is therefore
    /// sealed against that. A file system that gets full does the same when a page is touched for the first
    /// time: the room that the file had is given up, at a restart too. With [`prefault`](Self::prefault) all is
    /// taken in advance, and a lack of room is [`MemoryError::NoRoomInFile`].
    pub fn file(fd: OwnedFd, offset: u64) -> Self {
        Self::of(Kind::File { fd, offset })
    }

    /// Takes huge pages from the host's pool, where they are set aside when the machine is built. Every
    /// region of memory must then be a multiple of `size`. Not for a [`file`](Self::file), which has
    /// pages of its own.
    ///
    /// A control group may allow less than the pool has; the guest that meets such a limit ends this
    /// process (`SIGBUS`), unless all is taken at once ([`prefault`](Self::prefault)).
    pub fn huge_pages(mut self, size: HugePageSize) -> Self {
        self.huge_pages = Some(size);
        self
    }

    /// Whether the host's kernel may form huge pages by itself: fewer TLB misses, but up to 2 MiB for
    /// each byte that is touched. Without a word, the host's own setting decides
    /// (`/sys/kernel/mm/transparent_hugepage`), which also limits what `true` can do; only a kernel that is
    /// copied to memory is then put into huge pages as far as it fills them, which costs nothing. Nothing changes for
    /// memory that is in huge pages anyway.
    pub fn transparent_huge_pages(mut self, on: bool) -> Self {
        self.transparent_huge_pages = Some(on);
        self
    }

    /// Whether all memory is taken when the machine is built, so that nothing is lacking later and no
    /// page has to be found while the guest runs.
    pub fn prefault(mut self, on: bool) -> Self {
        self.prefault = on;
        self
    }

    fn of(kind: Kind) -> Self {
        Self { kind, huge_pages: None, transparent_huge_pages: None, prefault: false }
    }

    /// Whether the pages may be replaced by others before the guest runs.
    pub(crate) fn may_be_replaced(&self) -> bool {
        !self.prefault
    }

    /// Whether huge pages may be formed where nobody asked for them.
    pub(crate) fn allows_transparent_huge_pages(&self) -> bool {
        self.transparent_huge_pages != Some(false)
    }

    /// Takes all of `memory` now, if that was asked for. Gives up if `has_ended`.
    pub(crate) fn fill(
        &self,
        memory: &GuestMemoryMmap,
        has_ended: &dyn Fn() -> bool,
    ) -> Result<(), MemoryError> {
        if !self.prefault {
            return Ok(());
        }
        memory.iter().try_for_each(|region| {
            let size = MemorySize::bytes(region.len());
            sys::prefault(region, has_ended).map_err(|source| {
                match (&self.kind, source.raw_os_error()) {
                    // As when the page would raise a `SIGBUS`.
                    (Kind::File { .. }, Some(libc::EFAULT)) => {
                        MemoryError::NoRoomInFile { size, source }
                    }
                    _ => MemoryError::Prefault { size, source },
                }
            })
        })
    }

    /// Guest memory at `ranges`.
    pub(crate) fn map(&self, ranges: &Ranges) -> Result<GuestMemoryMmap, MemoryError> {
        let total = ranges.ram().map(|(range, _)| length(range)).fold(0, u64::saturating_add);
        let (huge_pages, transparent) = (self.huge_pages, self.transparent_huge_pages);
        let source = self.source(total)?;
        let page = source.page;
        for (range, kind) in ranges.ram() {
            check_alignment(range.start, length(range), kind, page)?;
        }
        let mapped = source.map(ranges);
        // After what was mapped has been given back.
        let memory = mapped.map_err(|failure| match (failure, huge_pages) {
            (Failure::Map { error, .. }, Some(size)) if is_shortage(&error) => size.lacking(total),
            (Failure::Map { error, size }, _) => MemoryError::Map { size, source: error },
            (Failure::Collection(error), _) => error.into(),
        })?;
        for region in memory.iter() {
            sys::keep_from_children(region);
            if let Some(on) = transparent.filter(|_| page == PAGE) {
                sys::transparent_huge_pages(region, on)
                    .map_err(MemoryError::TransparentHugePages)?;
            }
        }
        self.fill(&memory, &|| false)?;
        Ok(memory)
    }

    fn source(&self, total: u64) -> Result<Source, MemoryError> {
        let huge = self.huge_pages;
        let page = huge.map_or(PAGE, HugePageSize::as_bytes);
        match (&self.kind, huge) {
            (Kind::Private, _) => {
                // Without reservation: the host may promise more than it has. Huge pages are reserved.
                let flags = huge.map_or(libc::MAP_NORESERVE, HugePageSize::mmap_flags);
                let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | flags;
                Ok(Source { flags, page, file: None, size: total })
            }
            (Kind::Memfd, _) => {
                let file = MemoryFile::memfd(total, huge)?;
                Ok(Source { flags: libc::MAP_SHARED, page, file: Some(file), size: total })
            }
            (Kind::File { .. }, Some(size)) => Err(MemoryError::HugePagesInFile { size }),
            (Kind::File { fd, offset }, None) => {
                let file = MemoryFile::from_caller(fd, *offset, total)?;
                let page = file.page;
                Ok(Source { flags: libc::MAP_SHARED, page, file: Some(file), size: total })
            }
        }
    }
}

impl Default for MemoryBacking {
    fn default() -> Self {
        Self::private()
    }
}

/// What is to be mapped, and how.
struct Source {
    flags: libc::c_int,
    page: u64,
    file: Option<MemoryFile>,
    size: u64,
}

enum Failure {
    Map { error: std::io::Error, size: MemorySize },
    Collection(GuestRegionCollectionError),
}

impl Source {
    fn map(&self, ranges: &Ranges) -> Result<GuestMemoryMmap, Failure> {
        let mut offset = self.file.as_ref().map_or(0, |file| file.offset);
        let mut regions = Vec::new();
        for (range, _) in ranges.ram() {
            let mapping = self
                .map_region(length(range), offset)
                .map_err(|error| Failure::Map { error, size: MemorySize::bytes(self.size) })?;
            let region = GuestRegionMmap::new(mapping, GuestAddress(range.start));
            regions.push(
                region.ok_or(Failure::Collection(GuestRegionCollectionError::NoMemoryRegion))?,
            );
            offset = offset.saturating_add(length(range));
        }
        GuestMemoryMmap::from_regions(regions).map_err(Failure::Collection)
    }

    fn map_region(&self, length: u64, offset: u64) -> std::io::Result<MmapRegion> {
        let length = usize::try_from(length).map_err(std::io::Error::other)?;
        let mut builder = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
            .with_mmap_flags(self.flags);
        if let Some(file) = &self.file {
            builder =
                builder.with_file_offset(FileOffset::from_arc(Arc::clone(&file.file), offset));
        }
        builder.build().map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            other => std::io::Error::other(other),
        })
    }
}

fn is_shortage(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EINVAL | libc::ENOENT))
}

fn check_alignment(
    start: u64,
    length: u64,
    kind: RegionKind,
    page: u64,
) -> Result<(), MemoryError> {
    if (start | length).is_multiple_of(page) {
        return Ok(());
    }
    let (size, page) = (MemorySize::bytes(length), MemorySize::bytes(page));
    Err(MemoryError::Alignment { kind, start, size, page })
}
