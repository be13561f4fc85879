//! The system calls of a disk that std has no safe face for. All `unsafe` of the block device is here
//! and in `uring`.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;

use super::engine::Data;

/// The most pieces that one call takes (`IOV_MAX` of Linux).
const MAX_PIECES: usize = 1024;

/// Guest memory as the kernel wants it named. A list to be filled anew for each operation, so that
/// none allocates.
#[derive(Debug, Default)]
pub(super) struct IoVecs(Vec<libc::iovec>);

impl IoVecs {
    /// Lists `data`, or the first part of it if it is in too many pieces.
    ///
    /// The pointers are good for as long as the memory of `data` is.
    pub(super) fn fill(&mut self, data: &Data<'_>) -> io::Result<()> {
        self.0.clear();
        for slice in data.slices().take(MAX_PIECES) {
            let slice = slice.map_err(io::Error::other)?;
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.0.push(libc::iovec { iov_base, iov_len: slice.len() });
        }
        Ok(())
    }

    pub(super) fn as_ptr(&self) -> *const libc::iovec {
        self.0.as_ptr()
    }

    /// How many pieces; at most [`MAX_PIECES`].
    pub(super) fn count(&self) -> u32 {
        u32::try_from(self.0.len()).unwrap_or(0)
    }
}

/// `preadv`: fills `data` from `offset` of `file` on.
pub(super) fn read(
    file: &File,
    data: &Data<'_>,
    offset: u64,
    iovecs: &mut IoVecs,
) -> io::Result<usize> {
    iovecs.fill(data)?;
    let offset = file_offset(offset)?;
    let count = libc::c_int::try_from(iovecs.count()).unwrap_or(0);
    // SAFETY: `iovecs` was filled from `data` just now, which stays borrowed, and its memory mapped,
    // until the call returns. Guest memory has no Rust references: the kernel may write to it.
    retry(|| unsafe { libc::preadv(file.as_raw_fd(), iovecs.as_ptr(), count, offset) })
}

/// `pwritev`: puts `data` at `offset` of `file`.
pub(super) fn write(
    file: &File,
    data: &Data<'_>,
    offset: u64,
    iovecs: &mut IoVecs,
) -> io::Result<usize> {
    iovecs.fill(data)?;
    let offset = file_offset(offset)?;
    let count = libc::c_int::try_from(iovecs.count()).unwrap_or(0);
    // SAFETY: as in `read`; the kernel only reads the memory.
    retry(|| unsafe { libc::pwritev(file.as_raw_fd(), iovecs.as_ptr(), count, offset) })
}

/// Tries to lock bytes `start..start + len` of `file` for its open file description (`F_OFD_SETLK`):
/// for itself alone, or shared. `Ok(false)` if another one's lock is in the way.
pub(super) fn try_lock(file: &File, start: i64, len: i64, exclusive: bool) -> io::Result<bool> {
    let kind = if exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    match set_lock(file, &range(start, len, kind)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Takes the locks of bytes `start..start + len` away.
pub(super) fn unlock(file: &File, start: i64, len: i64) -> io::Result<()> {
    set_lock(file, &range(start, len, libc::F_UNLCK))
}

fn set_lock(file: &File, lock: &libc::flock) -> io::Result<()> {
    // SAFETY: F_OFD_SETLK reads a `struct flock`, which `lock` is.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, lock) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether nobody else has any lock on bytes `start..start + len` (`F_OFD_GETLK`).
pub(super) fn is_unlocked(file: &File, start: i64, len: i64) -> io::Result<bool> {
    let mut lock = range(start, len, libc::F_WRLCK);
    // SAFETY: F_OFD_GETLK reads and writes a `struct flock`, which `lock` is.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut lock) };
    if result == 0 {
        Ok(lock.l_type == lock_type(libc::F_UNLCK))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The status flags of an open file (`F_GETFL`): access mode, `O_DIRECT`, `O_APPEND` and so on.
pub(super) fn flags(file: &File) -> io::Result<libc::c_int> {
    // SAFETY: F_GETFL takes nothing.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    if flags >= 0 { Ok(flags) } else { Err(io::Error::last_os_error()) }
}

/// Sets the status flags (`F_SETFL`); the access mode stays.
pub(super) fn set_flags(file: &File, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: F_SETFL takes an integer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Whether `file` is in a tmpfs, as memfds are too.
pub(super) fn is_tmpfs(file: &File) -> bool {
    /// `TMPFS_MAGIC`; the type of libc's constant and that of the field depend on the C library.
    const TMPFS: i128 = 0x0102_1994;
    let mut status = MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: the kernel writes a `struct statfs` to `status`.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) };
    // SAFETY: all of it is integers, zero at first and then perhaps written by the kernel.
    let status = unsafe { status.assume_init() };
    result == 0 && i128::from(status.f_type) == TMPFS
}

/// What direct I/O on `file` asks of memory addresses and of offsets and lengths, in bytes, if the
/// kernel tells (`STATX_DIOALIGN`, Linux 6.1). Zero: no direct I/O.
pub(super) fn direct_alignment(file: &File) -> Option<(u32, u32)> {
    let mut status = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is an empty C string, which AT_EMPTY_PATH makes the file itself, and the kernel
    // writes a `struct statx` to `status`.
    let result = unsafe {
        libc::statx(
            file.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            libc::STATX_DIOALIGN,
            status.as_mut_ptr(),
        )
    };
    if result != 0 {
        return None;
    }
    // SAFETY: all of it is integers, zero at first and then written by the kernel.
    let status = unsafe { status.assume_init() };
    let told = status.stx_mask & libc::STATX_DIOALIGN != 0;
    told.then_some((status.stx_dio_mem_align, status.stx_dio_offset_align))
}

/// A property of a block device: one of the ioctls of `linux/fs.h` that give an `int`.
#[derive(Debug, Clone, Copy)]
#[repr(u32)]
pub(super) enum BlockProperty {
    /// `BLKSSZGET`: bytes of a logical block.
    LogicalBlock = 0x1268,
    /// `BLKIOMIN`: the smallest size that suits it, in bytes.
    MinimalIo = 0x1278,
    /// `BLKIOOPT`: the size that suits it best, in bytes; 0: any.
    OptimalIo = 0x1279,
    /// `BLKALIGNOFF`: how far the first logical block is from the start of a physical one, in bytes.
    AlignmentOffset = 0x127a,
    /// `BLKPBSZGET`: bytes of a physical block.
    PhysicalBlock = 0x127b,
}

/// A property of the block device that `file` is. `None` if it does not tell.
pub(super) fn block_property(file: &File, property: BlockProperty) -> Option<u32> {
    let mut value: libc::c_int = 0;
    // SAFETY: each of these ioctls writes one `int`, which `value` is.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), property as u32 as _, &mut value) };
    if result == 0 { u32::try_from(value).ok() } else { None }
}

fn range(start: i64, len: i64, kind: libc::c_int) -> libc::flock {
    // SAFETY: `struct flock` is integers only; its `l_pid` must be zero here.
    let mut lock: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    lock.l_type = lock_type(kind);
    lock.l_whence = 0; // SEEK_SET
    lock.l_start = start;
    lock.l_len = len;
    lock
}

/// The kinds of a lock are 0, 1 and 2; the field is narrower than the constants.
fn lock_type(kind: libc::c_int) -> libc::c_short {
    libc::c_short::try_from(kind).unwrap_or(0)
}

fn file_offset(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(count) = usize::try_from(call()) {
            return Ok(count);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}
