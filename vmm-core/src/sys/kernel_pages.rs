use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use sparkler_loader::MapPages;
use vm_memory::GuestRegionMmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

const HUGE_PAGE: usize = 2 << 20;

/// Guest memory that parts of a kernel's file can be mapped over, while no vCPU runs.
pub(crate) struct KernelPages<'a> {
    pub(crate) memory: &'a GuestMemoryMmap,
    /// Whether huge pages may be formed.
    pub(crate) huge: bool,
    /// Whether pages may be replaced by those of a file.
    pub(crate) replace: bool,
    pub(crate) has_ended: &'a dyn Fn() -> bool,
}

impl MapPages for KernelPages<'_> {
    /// Huge pages where whole ones are filled: they cost no memory that would not be taken anyway, and
    /// save the 512 page faults of each.
    fn will_fill(&self, address: GuestAddress, length: u64) {
        let Some((region, start)) = self.memory.to_region_addr(address) else { return };
        let room = region.len().saturating_sub(start.0);
        let Ok(length) = usize::try_from(length.min(room)) else { return };
        if let (true, Ok(place)) = (self.huge && is_plain(region), region.get_host_address(start)) {
            let head = place.align_offset(HUGE_PAGE).min(length);
            let whole = (length - head) & !(HUGE_PAGE - 1);
            // SAFETY: `head` and `whole` together are no more than `length`, which ends within the region.
            // The advice changes nothing in what is found there.
            let advised = whole == 0
                || unsafe {
                    libc::madvise(place.add(head).cast(), whole, libc::MADV_HUGEPAGE) == 0
                };
            if !advised {
                log::debug!("madvise(MADV_HUGEPAGE): {}", io::Error::last_os_error());
            }
        }
    }

    fn map(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: GuestAddress,
        length: u64,
    ) -> io::Result<bool> {
        let Some((region, start)) = self.memory.to_region_addr(address) else { return Ok(false) };
        let end = start.0.checked_add(length).filter(|&end| end <= region.len());
        if end.is_none() || !self.replace || !is_plain(region) {
            return Ok(false);
        }
        let place = region.get_host_address(start).map_err(io::Error::other)?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let mapped = replace(place, length, (file, offset));
        if mapped.is_err() && fill_gap(place, length).is_err() {
            // Guest memory is still there, or it is not and another thread's mapping is. The one cannot be told
            // from the other, so it is never unmapped.
            std::mem::forget(self.memory.clone());
        }
        mapped.map(|()| true)
    }

    fn is_given_up(&self) -> bool {
        (self.has_ended)()
    }
}

/// Whether the region consists of ordinary pages that belong to this process alone.
fn is_plain(region: &GuestRegionMmap) -> bool {
    let flags = region.flags();
    let plain = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    region.file_offset().is_none() && flags & plain == plain && flags & libc::MAP_HUGETLB == 0
}

/// Replaces what is mapped at `place`, a part of one of our regions, by a private copy of the file.
fn replace(
    place: *mut u8,
    length: usize,
    (file, offset): (BorrowedFd<'_>, libc::off_t),
) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_FIXED | libc::MAP_NORESERVE;
    // SAFETY: the range lies within one region, which owns it and gives it back as a whole, whatever is
    // mapped there. It stays readable and writable, and guest memory is only ever accessed as volatile
    // memory, so its content may change at any time. That the file does not get shorter is promised by a seal or by
    // whoever called `Kernel::mapped`.
    let mapped =
        unsafe { libc::mmap(place.cast(), length, protection, flags, file.as_raw_fd(), offset) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    keep_from_children(mapped, length);
    Ok(())
}

/// Puts pages of zeros where a mapping failed after the kernel had taken away what was there. An error: there
/// is something, be it what was there before.
fn fill_gap(place: *mut u8, length: usize) -> io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    let flags = flags | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing that is mapped is replaced.
    let mapped = unsafe { libc::mmap(place.cast(), length, protection, flags, -1, 0) };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    if mapped != place.cast() {
        // Kernels before 4.17 do not know the flag.
        // SAFETY: it was just mapped, and nobody knows of it.
        unsafe { libc::munmap(mapped, length) };
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    keep_from_children(mapped, length);
    Ok(())
}

/// As of all guest memory, no child process needs what was just mapped.
fn keep_from_children(mapped: *mut libc::c_void, length: usize) {
    // SAFETY: it was just mapped by us, with this length; nothing changes for this process.
    if unsafe { libc::madvise(mapped, length, libc::MADV_DONTFORK) } != 0 {
        log::debug!("madvise(MADV_DONTFORK): {}", io::Error::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use vm_memory::Bytes;

    use super::*;

    #[test]
    fn a_file_that_cannot_be_mapped_leaves_guest_memory_as_it_is() {
        let address = GuestAddress(1 << 20);
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        memory.write_obj(0x5au8, address).unwrap();
        let named = tempfile::NamedTempFile::new().unwrap();
        named.as_file().set_len(4096).unwrap();
        let write_only = File::options().write(true).open(named.path()).unwrap();
        let pages =
            KernelPages { memory: &memory, huge: false, replace: true, has_ended: &|| false };
        let error = pages.map(write_only.as_fd(), 0, address, 4096).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EACCES));
        assert_eq!(memory.read_obj::<u8>(address).unwrap(), 0x5a);
        let place = memory.get_host_address(address).unwrap();
        let taken = fill_gap(place, 4096).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AlreadyExists);
        assert!(pages.map(named.as_file().as_fd(), 0, address, 4096).unwrap());
        assert_eq!(memory.read_obj::<u8>(address).unwrap(), 0);
    }
}
