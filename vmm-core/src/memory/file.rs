use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use super::{HugePageSize, MemoryError, MemorySize};
use crate::sys::memory as sys;

/// A file that guest memory is mapped from.
pub(super) struct MemoryFile {
    pub(super) file: Arc<File>,
    pub(super) offset: u64,
    /// The size of its pages.
    pub(super) page: u64,
}

impl MemoryFile {
    /// A new memfd that cannot change its size.
    pub(super) fn memfd(size: u64, huge: Option<HugePageSize>) -> Result<Self, MemoryError> {
        let failed = |what| move |source| MemoryError::File { what, source };
        let fd = sys::memfd(huge.map_or(0, HugePageSize::memfd_flags));
        let file = File::from(fd.map_err(|source| match huge {
            // The kernel knows no pool of this size.
            Some(huge) if !huge.pool().exists() => huge.lacking(size),
            _ => failed("make")(source),
        })?);
        file.set_len(size).map_err(failed("size"))?;
        sys::seal_size(&file).map_err(failed("seal"))?;
        let page = huge.map_or(super::backing::PAGE, HugePageSize::as_bytes);
        Ok(Self { file: Arc::new(file), offset: 0, page })
    }

    /// The caller's file from `offset` on, which is zeros afterwards.
    pub(super) fn from_caller(fd: &OwnedFd, offset: u64, size: u64) -> Result<Self, MemoryError> {
        let failed = |what| move |source| MemoryError::File { what, source };
        let file = File::from(fd.try_clone().map_err(failed("duplicate"))?);
        let metadata = file.metadata().map_err(failed("look at"))?;
        if !metadata.is_file() || !sys::is_read_write(&file).map_err(failed("look at"))? {
            return Err(MemoryError::FileKind);
        }
        let page = match sys::is_hugetlbfs(&file).map_err(failed("look at"))? {
            true => metadata.blksize(),
            false => super::backing::PAGE,
        };
        if !offset.is_multiple_of(page.max(1)) {
            return Err(MemoryError::FileOffset { offset, page: MemorySize::bytes(page) });
        }
        // First the seal, then the look at the size: it cannot become less in between.
        seal_against_shrinking(&file);
        let present = file.metadata().map_err(failed("look at"))?.len();
        let needed = offset.checked_add(size).filter(|&needed| needed <= present);
        if needed.is_none() {
            let needed = offset.saturating_add(size);
            return Err(MemoryError::FileTooSmall { size: present, offset, needed });
        }
        sys::punch_hole(&file, offset, size).map_err(failed("empty"))?;
        Ok(Self { file: Arc::new(file), offset, page })
    }
}

/// As far as this file can be sealed: one on a disk cannot.
fn seal_against_shrinking(file: &File) {
    if let Err(error) = sys::seal_against_shrinking(file) {
        if error.kind() != io::ErrorKind::InvalidInput {
            log::debug!("the file for guest memory is not sealed: {error}");
        }
    }
}
