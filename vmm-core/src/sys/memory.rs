use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use vm_memory::{Bytes, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

const PAGE: u64 = 4096;

/// Leaves the region out of the processes that this one forks. A copy would make the guest's pages
/// copy-on-write: slow, and while the kernel reads from a disk straight into a page, wrong.
pub(crate) fn keep_from_children(region: &GuestRegionMmap) {
    if let Err(error) = advise(region, Advice::KeepFromChildren) {
        log::debug!("madvise(MADV_DONTFORK): {error}");
    }
}

/// Whether the kernel may form huge pages in the region.
pub(crate) fn transparent_huge_pages(region: &GuestRegionMmap, on: bool) -> io::Result<()> {
    advise(region, if on { Advice::HugePages } else { Advice::NoHugePages })
}

/// Takes every page of the region, writable, without changing what is in them.
pub(crate) fn prefault(region: &GuestRegionMmap) -> io::Result<()> {
    loop {
        match advise(region, Advice::Populate) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Makes the region zeros, as it was when it was new, and gives its pages back to the host if possible.
pub(crate) fn clear(region: &GuestRegionMmap) {
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let cleared = match region.file_offset() {
        Some(at) if shared => punch_hole(at.file(), at.start(), region.len()),
        None if !shared => drop_pages(region),
        _ => Err(io::ErrorKind::Unsupported.into()),
    };
    if let Err(error) = cleared {
        log::debug!("guest memory is overwritten, as its pages cannot be given back: {error}");
        overwrite(region);
    }
}

/// Drops private pages, which are zeros when they are touched again.
fn drop_pages(region: &GuestRegionMmap) -> io::Result<()> {
    let length = usize::try_from(region.len()).map_err(io::Error::other)?;
    // SAFETY: the range is one mapping, which the region owns. Its content changes, as guest memory does at
    // any time: it is only ever accessed as volatile memory.
    check(unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_DONTNEED) })
}

fn overwrite(region: &GuestRegionMmap) {
    let zeros = [0; 1 << 16];
    let mut offset = 0;
    while offset < region.len() {
        // Up to its end at most: the range is the region's own.
        let written = region.write(&zeros, MemoryRegionAddress(offset)).unwrap_or(0);
        offset = offset.saturating_add(u64::try_from(written.max(1)).unwrap_or(u64::MAX));
    }
}

/// Advice that changes nothing in what this process finds in memory.
enum Advice {
    KeepFromChildren,
    HugePages,
    NoHugePages,
    Populate,
}

fn advise(region: &GuestRegionMmap, advice: Advice) -> io::Result<()> {
    let advice = match advice {
        Advice::KeepFromChildren => libc::MADV_DONTFORK,
        Advice::HugePages => libc::MADV_HUGEPAGE,
        Advice::NoHugePages => libc::MADV_NOHUGEPAGE,
        Advice::Populate => libc::MADV_POPULATE_WRITE,
    };
    let length = usize::try_from(region.len()).map_err(io::Error::other)?;
    // SAFETY: the range is one mapping, which the region owns. In this process no content changes by any of
    // these, and a child process has no business with guest memory: none of our code runs in one.
    check(unsafe { libc::madvise(region.as_ptr().cast(), length, advice) })
}

/// How many bytes of the region the host has in memory.
pub(crate) fn resident(region: &GuestRegionMmap) -> u64 {
    /// Pages that are asked for at a time: 256 MiB.
    const CHUNK: usize = 1 << 16;
    let mut states = vec![0u8; CHUNK.min(usize::try_from(region.len() / PAGE).unwrap_or(CHUNK))];
    let mut pages = 0u64;
    let mut offset = 0u64;
    while offset < region.len() {
        let length = (region.len() - offset).min(CHUNK as u64 * PAGE);
        let count = usize::try_from(length / PAGE).unwrap_or(0).min(states.len());
        let (Ok(start), Ok(bytes)) = (usize::try_from(offset), usize::try_from(length)) else {
            break;
        };
        // SAFETY: `start` lies within the region's mapping, as `offset` is less than its length, and the
        // kernel writes one byte for each page of `bytes`, as many as `states` has or less.
        let result = unsafe {
            let address = region.as_ptr().add(start);
            libc::mincore(address.cast(), bytes, states.as_mut_ptr())
        };
        if result == 0 {
            let resident = states.iter().take(count).filter(|&&state| state & 1 != 0).count();
            pages = pages.saturating_add(resident as u64);
        }
        offset = offset.saturating_add(length);
    }
    pages.saturating_mul(PAGE)
}

/// A memfd that can be sealed and is closed on exec; `flags` may choose its pages.
pub(crate) fn memfd(flags: libc::c_uint) -> io::Result<OwnedFd> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | flags;
    // A host may insist that it cannot be executed; kernels before 6.3 do not know the flag.
    let create = |flags| {
        // SAFETY: the name is a C string, and the descriptor is a new one that nobody else has.
        unsafe {
            let fd = libc::memfd_create(c"guest-memory".as_ptr(), flags);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
        }
    };
    create(flags | libc::MFD_NOEXEC_SEAL).or_else(|_| create(flags))
}

/// From now on the size of the memfd cannot change.
pub(crate) fn seal_size(file: &File) -> io::Result<()> {
    seal(file, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL)
}

/// From now on the memfd cannot become shorter.
pub(crate) fn seal_against_shrinking(file: &File) -> io::Result<()> {
    seal(file, libc::F_SEAL_SHRINK)
}

fn seal(file: &File, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: the descriptor is open, and the request takes an integer.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

/// Whether the file is open for both reading and writing.
pub(crate) fn is_read_write(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open, and the request takes nothing.
    let flags = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
    check(flags.min(0))?;
    Ok(flags & libc::O_ACCMODE == libc::O_RDWR)
}

/// Whether the file consists of huge pages.
pub(crate) fn is_hugetlbfs(file: &File) -> io::Result<bool> {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and `status` is ours for the kernel to fill.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled `status`.
    let status = unsafe { status.assume_init() };
    // The C libraries disagree about the types.
    Ok(u64::try_from(status.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC))
}

/// Makes the range zeros, without room taken for them.
pub(crate) fn punch_hole(file: &File, offset: u64, length: u64) -> io::Result<()> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let length = libc::off_t::try_from(length).map_err(io::Error::other)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: the descriptor is open; no memory is involved.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, offset, length) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::sync::Arc;

    use vm_memory::{FileOffset, GuestAddress, MmapRegion};

    use super::*;

    const LENGTH: usize = 3 << 20;

    fn becomes_zero(mapping: MmapRegion) {
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let mut bytes = vec![0x5a; LENGTH];
        region.write_slice(&bytes, MemoryRegionAddress(0)).unwrap();
        clear(&region);
        region.read_slice(&mut bytes, MemoryRegionAddress(0)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn any_memory_becomes_zeros() {
        becomes_zero(MmapRegion::new(LENGTH).unwrap());
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.write_all_at(&vec![1; 2 * LENGTH], 0).unwrap();
        let at = || Some(FileOffset::from_arc(file.clone(), 8192));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        for flags in [libc::MAP_SHARED, libc::MAP_PRIVATE] {
            becomes_zero(MmapRegion::build(at(), LENGTH, protection, flags).unwrap());
        }
        let mut around = [0; 2];
        file.read_exact_at(&mut around, 8191).unwrap();
        assert_eq!(around, [1, 0], "nothing before it");
        file.read_exact_at(&mut around, 8192 + LENGTH as u64 - 1).unwrap();
        assert_eq!(around, [0, 1], "nothing behind it");
    }
}
