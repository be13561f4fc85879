//! The file or block device behind a disk.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::sync::OnceLock;

use vmm_sys_util::fallocate::{FallocateMode, fallocate};

use super::engine::Data;
use super::geometry::Geometry;
use super::lock;
use super::sys::{self, BlockProperty, IoVecs};

/// What direct I/O asks for if nobody says.
const SAFE_ALIGNMENT: u64 = 4096;
/// The most that one bounce buffer holds.
const MAX_BOUNCE: usize = 1 << 20;

/// An open file or block device, only ever used by offset.
///
/// Data is read and written with `preadv` and the like, never through a mapping: a file that shrinks
/// underneath is an error of one request, not a signal.
#[derive(Debug)]
pub(super) struct DiskFile {
    file: File,
    block_device: bool,
    /// `O_DIRECT` is set, and asks for this.
    direct: OnceLock<Alignment>,
}

#[derive(Debug, Clone, Copy)]
struct Alignment {
    /// Of addresses in memory.
    memory: u64,
    /// Of offsets and lengths.
    offset: u64,
}

/// How a read or write gets to the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// As it is.
    Straight,
    /// The guest's buffers do not suit direct I/O: through one that does.
    Bounce,
    /// Offset or length do not suit direct I/O: through the page cache, while nothing else is in
    /// flight. (If a direct write to another part of the same page ran at the same time, one of the
    /// two would be lost.)
    Cache,
}

impl DiskFile {
    /// `None` if it is neither a regular file nor a block device.
    pub(super) fn new(file: File) -> io::Result<Option<Self>> {
        let kind = file.metadata()?.file_type();
        let block_device = kind.is_block_device();
        let fits = block_device || kind.is_file();
        Ok(fits.then_some(Self { file, block_device, direct: OnceLock::new() }))
    }

    /// Takes the lock of `lock`, until the drop. `Ok(false)`: it is in use otherwise.
    pub(super) fn try_lock(&self, writable: bool) -> io::Result<bool> {
        lock::try_lock(&self.file, writable)
    }

    /// Bytes that it holds now.
    pub(super) fn size(&self) -> io::Result<u64> {
        if self.block_device {
            // The position is shared with whoever gave the file, but used by nobody here.
            (&self.file).seek(SeekFrom::End(0))
        } else {
            Ok(self.file.metadata()?.len())
        }
    }

    pub(super) fn geometry(&self) -> Geometry {
        if self.block_device {
            return Geometry::of_block_device(&self.file);
        }
        Geometry::of_file(self.file.metadata().map_or(0, |metadata| metadata.blksize()))
    }

    /// From now on, around the page cache.
    pub(super) fn set_direct(&self) -> io::Result<()> {
        let (memory, offset) = self.direct_alignment();
        if offset == 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        sys::set_flags(&self.file, sys::flags(&self.file)? | libc::O_DIRECT)?;
        self.direct.get_or_init(|| Alignment { memory: memory.max(1), offset });
        Ok(())
    }

    fn direct_alignment(&self) -> (u64, u64) {
        if let Some((memory, offset)) = sys::direct_alignment(&self.file) {
            return (memory.into(), offset.into());
        }
        let block = sys::block_property(&self.file, BlockProperty::LogicalBlock)
            .filter(|_| self.block_device)
            .map_or(SAFE_ALIGNMENT, u64::from);
        (block, block)
    }

    pub(super) fn is_direct(&self) -> bool {
        self.direct.get().is_some()
    }

    /// Whether it lies in memory, so that no operation ever waits for storage.
    pub(super) fn in_memory(&self) -> bool {
        !self.block_device && sys::is_tmpfs(&self.file)
    }

    /// How to move `data` to or from `offset`.
    pub(super) fn way(&self, data: &Data<'_>, offset: u64) -> Way {
        let Some(alignment) = self.direct.get() else { return Way::Straight };
        let suits = |size: usize| {
            u64::try_from(size).is_ok_and(|size| size.is_multiple_of(alignment.offset))
        };
        if !offset.is_multiple_of(alignment.offset) || !suits(data.len()) {
            return Way::Cache;
        }
        let straight = data.slices().all(|slice| {
            slice.is_ok_and(|slice| {
                let address = u64::try_from(slice.ptr_guard().as_ptr().addr()).unwrap_or(u64::MAX);
                address.is_multiple_of(alignment.memory) && suits(slice.len())
            })
        });
        if straight { Way::Straight } else { Way::Bounce }
    }

    /// Fills `data` from `offset` on, or the first part of it. 0: the file ends there.
    pub(super) fn read(
        &self,
        data: &Data<'_>,
        offset: u64,
        iovecs: &mut IoVecs,
    ) -> io::Result<usize> {
        match self.way(data, offset) {
            Way::Straight => sys::read(&self.file, data, offset, iovecs),
            Way::Cache => self.through_cache(|| sys::read(&self.file, data, offset, iovecs)),
            Way::Bounce => self.bounce(data.len(), |buffer| {
                let count = self.file.read_at(buffer, offset)?;
                let mut rest = buffer.get(..count).unwrap_or_default();
                for slice in data.slices() {
                    let slice = slice.map_err(io::Error::other)?;
                    let (now, later) = rest.split_at(slice.len().min(rest.len()));
                    slice.copy_from(now);
                    rest = later;
                }
                Ok(count)
            }),
        }
    }

    /// Puts `data`, or the first part of it, at `offset`.
    pub(super) fn write(
        &self,
        data: &Data<'_>,
        offset: u64,
        iovecs: &mut IoVecs,
    ) -> io::Result<usize> {
        match self.way(data, offset) {
            Way::Straight => sys::write(&self.file, data, offset, iovecs),
            Way::Cache => self.through_cache(|| sys::write(&self.file, data, offset, iovecs)),
            Way::Bounce => self.bounce(data.len(), |buffer| {
                let mut rest = &mut *buffer;
                for slice in data.slices() {
                    let slice = slice.map_err(io::Error::other)?;
                    let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
                    slice.copy_to(now);
                    rest = later;
                }
                self.file.write_at(buffer, offset)
            }),
        }
    }

    /// Makes every write that was complete before durable, with what is needed to read it back.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Gives the storage of these bytes back, if the file system can.
    pub(super) fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.fallocate(FallocateMode::PunchHole, offset, len).map(|_| ())
    }

    /// Makes these bytes zero, by the quickest means that there is.
    pub(super) fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let done = (unmap && self.fallocate(FallocateMode::PunchHole, offset, len)?)
            || self.fallocate(FallocateMode::ZeroRange, offset, len)?;
        if done {
            return Ok(());
        }
        self.through_cache(|| self.write_zero_bytes(offset, len))
    }

    /// `Ok(false)`: not possible here.
    fn fallocate(&self, mode: FallocateMode, offset: u64, len: u64) -> io::Result<bool> {
        match fallocate(&self.file, mode, true, offset, len) {
            Ok(()) => Ok(true),
            // EINVAL: a block device wants whole blocks.
            Err(error) if matches!(error.errno(), libc::EOPNOTSUPP | libc::EINVAL) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn write_zero_bytes(&self, offset: u64, len: u64) -> io::Result<()> {
        static ZEROES: [u8; 64 << 10] = [0; 64 << 10];
        let (mut offset, mut left) = (offset, len);
        while left > 0 {
            let part = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
            self.file.write_all_at(ZEROES.get(..part).unwrap_or(&ZEROES), offset)?;
            let part = u64::try_from(part).unwrap_or(left);
            (offset, left) = (offset.saturating_add(part), left.saturating_sub(part));
        }
        Ok(())
    }

    /// Runs `io` with direct I/O switched off. Nothing else may be in flight.
    fn through_cache<T>(&self, io: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.direct.get().is_none() {
            return io();
        }
        let flags = sys::flags(&self.file)?;
        sys::set_flags(&self.file, flags & !libc::O_DIRECT)?;
        let result = io();
        sys::set_flags(&self.file, flags)?;
        result
    }

    /// Runs `io` with a buffer of `len` bytes, or as many as it may have, that suits direct I/O.
    fn bounce(
        &self,
        len: usize,
        io: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let memory = self.direct.get().map_or(SAFE_ALIGNMENT, |direct| direct.memory);
        let align = usize::try_from(memory).unwrap_or(1).next_power_of_two();
        let len = len.min(MAX_BOUNCE);
        let mut space = vec![0; len.saturating_add(align)];
        let start = space.as_ptr().align_offset(align);
        let end = start.saturating_add(len);
        space.get_mut(start..end).map_or_else(|| Err(io::ErrorKind::OutOfMemory.into()), io)
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        lock::unlock(&self.file);
    }
}

impl AsRawFd for DiskFile {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}
