use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress, VolatileSlice};

const PAGE: usize = 4096;

/// Leaves the region out of the processes that this one forks. A copy would make the guest's pages
/// copy-on-write: slow, and while the kernel reads from a disk straight into a page, wrong.
pub(crate) fn keep_from_children(region: &GuestRegionMmap) {
    if let Err(error) = advise(region, libc::MADV_DONTFORK) {
        log::debug!("madvise(MADV_DONTFORK): {error}");
    }
}

/// Whether the kernel may form huge pages in the region.
pub(crate) fn transparent_huge_pages(region: &GuestRegionMmap, on: bool) -> io::Result<()> {
    advise(region, if on { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE })
}

/// Takes every page of the region, writable, without changing what is in them. Gives up if `has_ended`.
pub(crate) fn prefault(region: &GuestRegionMmap, has_ended: &dyn Fn() -> bool) -> io::Result<()> {
    parts(region).take_while(|_| !has_ended()).try_for_each(|(_, part)| {
        loop {
            match advise_part(&part, libc::MADV_POPULATE_WRITE) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                result => return result,
            }
        }
    })
}

/// Makes the region zeros, as it was when it was new, and gives its pages back to the host if possible; but
/// not huge pages of its pool: with the page goes its reservation, and somebody else may take both. Where
/// parts of a kernel's file were mapped, there may be what the file has. Gives up if `has_ended`.
pub(crate) fn clear(region: &GuestRegionMmap, has_ended: &dyn Fn() -> bool) {
    for (offset, part) in parts(region).take_while(|_| !has_ended()) {
        if let Err(error) = clear_part(region, offset, &part) {
            log::debug!("guest memory is overwritten, as its pages cannot be given back: {error}");
            overwrite(&part, |_, _| Ok(true)).unwrap_or_default();
        }
    }
}

fn clear_part(region: &GuestRegionMmap, offset: u64, part: &VolatileSlice<'_>) -> io::Result<()> {
    let shared = region.flags() & libc::MAP_SHARED != 0;
    let huge = region.flags() & libc::MAP_HUGETLB != 0;
    match region.file_offset() {
        Some(at) if shared => {
            let start = at.start().saturating_add(offset);
            match is_hugetlbfs(at.file())? {
                // Also what others have written. To read takes no page.
                true => {
                    let mut found = vec![0; ZEROS.len()];
                    overwrite(part, |offset, length| {
                        let found = found.get_mut(..length).unwrap_or_default();
                        at.file().read_exact_at(found, start.saturating_add(offset as u64))?;
                        Ok(Some(&*found) != ZEROS.get(..length))
                    })
                }
                false => punch_hole(at.file(), start, part.len() as u64),
            }
        }
        None if !shared && huge => {
            let states = page_states(part)?;
            overwrite(part, |offset, _| {
                let state = states.get(offset / PAGE);
                Ok(state.is_none_or(|state| state & 1 != 0))
            })
        }
        None if !shared => advise_part(part, libc::MADV_DONTNEED),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// Less than the smallest huge page.
static ZEROS: [u8; 1 << 16] = [0; 1 << 16];

/// Writes zeros wherever `is_needed` says so of an offset and a length.
fn overwrite(
    part: &VolatileSlice<'_>,
    mut is_needed: impl FnMut(usize, usize) -> io::Result<bool>,
) -> io::Result<()> {
    for offset in (0..part.len()).step_by(ZEROS.len()) {
        let length = part.len().saturating_sub(offset).min(ZEROS.len());
        if is_needed(offset, length)? {
            let zeros = ZEROS.get(..length).unwrap_or_default();
            part.write_slice(zeros, offset).map_err(io::Error::other)?;
        }
    }
    Ok(())
}

/// The region in parts of which each takes no long time, with their offsets: 256 MiB.
fn parts(region: &GuestRegionMmap) -> impl Iterator<Item = (u64, VolatileSlice<'_>)> {
    const PART: u64 = 256 << 20;
    let offsets = (0..).map(|number: u64| number.saturating_mul(PART));
    offsets.take_while(|&offset| offset < region.len()).filter_map(|offset| {
        let length = usize::try_from(region.len().saturating_sub(offset).min(PART)).ok()?;
        Some((offset, region.get_slice(MemoryRegionAddress(offset), length).ok()?))
    })
}

/// Advice for all of the region.
fn advise(region: &GuestRegionMmap, advice: libc::c_int) -> io::Result<()> {
    let all = region.as_volatile_slice().map_err(io::Error::other)?;
    advise_part(&all, advice)
}

fn advise_part(part: &VolatileSlice<'_>, advice: libc::c_int) -> io::Result<()> {
    // SAFETY: the range lies within a region of guest memory, which owns all that is mapped there. It stays
    // mapped, readable and writable. Its content may change, as guest memory does at any time: it is only
    // ever accessed as volatile memory. A child process has no business with it: none of our code runs in one.
    check(unsafe { libc::madvise(part.ptr_guard_mut().as_ptr().cast(), part.len(), advice) })
}

/// How many bytes of the region the host has in memory.
pub(crate) fn resident(region: &GuestRegionMmap) -> u64 {
    let states = parts(region).filter_map(|(_, part)| page_states(&part).ok());
    let count = |states: Vec<u8>| states.iter().filter(|&&state| state & 1 != 0).count() as u64;
    states.map(count).fold(0, u64::saturating_add).saturating_mul(PAGE as u64)
}

/// One byte for each page: bit 0 is set if the host has it in memory.
fn page_states(part: &VolatileSlice<'_>) -> io::Result<Vec<u8>> {
    let mut states = vec![0u8; part.len().div_ceil(PAGE)];
    // SAFETY: the range is mapped, as it lies within a region, and the kernel writes one byte for each page
    // of it, as many as `states` has.
    let result = unsafe {
        let address = part.ptr_guard_mut().as_ptr();
        libc::mincore(address.cast(), part.len(), states.as_mut_ptr())
    };
    check(result).map(|()| states)
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
    use std::sync::Arc;

    use vm_memory::{FileOffset, GuestAddress, MmapRegion};

    use super::*;

    const LENGTH: usize = 3 << 20;

    fn becomes_zero(mapping: MmapRegion) {
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let mut bytes = vec![0x5a; LENGTH];
        region.write_slice(&bytes, MemoryRegionAddress(0)).unwrap();
        clear(&region, &|| false);
        region.read_slice(&mut bytes, MemoryRegionAddress(0)).unwrap();
        assert!(bytes.iter().all(|&byte| byte == 0));
    }

    #[test]
    fn a_machine_that_ends_does_not_wait_for_all_to_be_cleared() {
        const PART: u64 = 256 << 20;
        let mapping = MmapRegion::new(usize::try_from(PART).unwrap() + 4096).unwrap();
        let region = GuestRegionMmap::new(mapping, GuestAddress(0)).unwrap();
        let places = [0, PART].map(MemoryRegionAddress);
        places.iter().for_each(|&place| region.write_obj(0x5au8, place).unwrap());
        let ended = std::cell::Cell::new(false);
        clear(&region, &|| ended.replace(true));
        assert_eq!(places.map(|place| region.read_obj::<u8>(place).unwrap()), [0, 0x5a]);
        let before = resident(&region);
        prefault(&region, &|| true).unwrap();
        assert_eq!(resident(&region), before);
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
