use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sparkler_devices::BusDevice;
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, MmapRegion};

use super::{MemoryError, MemorySize, SharedRegionError};

const PAGE: u64 = 4096;

/// A file that a guest finds in its physical address space, to read: the same pages of the host's cache
/// for every machine that has it, loaded as they are touched.
///
/// What a guest writes there is dropped and counted. The memory map calls the region reserved. Devices
/// cannot reach it: a request whose buffers lie there fails like one whose buffers lie nowhere.
///
/// A file that is made shorter ends the guests that read beyond its end
/// ([`CrashReason::MemoryFault`](crate::CrashReason::MemoryFault)), and nothing else.
#[derive(Debug)]
pub struct SharedRegion {
    file: File,
    size: u64,
}

impl SharedRegion {
    /// The whole file at `path`.
    ///
    /// # Errors
    /// If it cannot be opened, is no regular file, or is empty.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SharedRegionError> {
        let path = path.as_ref();
        let error = |source| SharedRegionError::Open { path: path.to_owned(), source };
        Self::of(File::open(path).map_err(error)?)
    }

    /// The whole file behind a descriptor that can be read: a regular file or a memfd.
    ///
    /// # Errors
    /// If it is no regular file, or is empty.
    pub fn fd(fd: OwnedFd) -> Result<Self, SharedRegionError> {
        Self::of(fd.into())
    }

    /// How many addresses it takes: the size of the file, up to a whole page. The last page ends with
    /// zeros.
    #[must_use]
    pub fn size(&self) -> MemorySize {
        MemorySize::bytes(self.size)
    }

    fn of(file: File) -> Result<Self, SharedRegionError> {
        let metadata = file.metadata().map_err(SharedRegionError::Inspect)?;
        if !metadata.is_file() {
            return Err(SharedRegionError::NotRegular);
        }
        let size = metadata.len().checked_next_multiple_of(PAGE);
        let size = size.filter(|&size| size > 0).ok_or(SharedRegionError::Empty)?;
        Ok(Self { file, size })
    }

    fn map(self, start: u64) -> io::Result<Window> {
        let length = usize::try_from(self.size).map_err(io::Error::other)?;
        let mapping = MmapRegionBuilder::new(length)
            .with_mmap_prot(libc::PROT_READ)
            .with_mmap_flags(libc::MAP_SHARED | libc::MAP_NORESERVE)
            .with_file_offset(FileOffset::new(self.file, 0))
            .build();
        let mapping = mapping.map_err(|error| match error {
            MmapRegionError::Mmap(error) => error,
            other => io::Error::other(other),
        })?;
        let range = start..start.saturating_add(self.size);
        Ok(Window { range, mapping, writes: Arc::default() })
    }
}

/// The shared regions of a machine.
#[derive(Debug, Default)]
pub(crate) struct SharedRegions(Vec<Window>);

impl SharedRegions {
    /// Maps the files; the addresses have been checked.
    pub(crate) fn map(
        regions: impl IntoIterator<Item = (u64, SharedRegion)>,
    ) -> Result<Self, MemoryError> {
        let map = |(start, region): (u64, SharedRegion)| {
            let size = region.size();
            let error = |source| MemoryError::MapShared { start, size, source };
            region.map(start).map_err(error)
        };
        regions.into_iter().map(map).collect::<Result<_, _>>().map(Self)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Window> {
        self.0.iter()
    }

    /// How often a guest has written to one of them.
    pub(crate) fn dropped_writes(&self) -> u64 {
        let counts = self.0.iter().map(|window| window.writes.0.load(Ordering::Relaxed));
        counts.fold(0, u64::saturating_add)
    }
}

/// A shared region in its place.
#[derive(Debug)]
pub(crate) struct Window {
    /// Guest-physical.
    pub(crate) range: Range<u64>,
    mapping: MmapRegion,
    writes: Arc<DroppedWrites>,
}

impl Window {
    /// Where it is mapped in this process, for KVM alone: nobody here may read it, as the file may
    /// have become shorter.
    pub(crate) fn host_address(&self) -> u64 {
        self.mapping.as_ptr() as u64
    }

    /// What answers when the guest writes.
    pub(crate) fn device(&self) -> Arc<dyn BusDevice> {
        Arc::clone(&self.writes) as _
    }
}

/// KVM reads by itself and brings every write here.
#[derive(Debug, Default)]
struct DroppedWrites(AtomicU64);

impl BusDevice for DroppedWrites {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, _data: &[u8]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
