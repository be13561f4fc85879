use vm_memory::{GuestMemoryRegion, GuestRegionMmap};

/// Leaves the region out of the processes that this one forks. A copy would make the guest's pages
/// copy-on-write: slow, and while the kernel reads from a disk straight into a page, wrong.
pub(crate) fn keep_from_children(region: &GuestRegionMmap) {
    let length = usize::try_from(region.len()).unwrap_or(0);
    // SAFETY: the range is one mapping, which the region owns. In this process nothing changes, and a child
    // process has no business with guest memory: none of our code runs in one.
    let result = unsafe { libc::madvise(region.as_ptr().cast(), length, libc::MADV_DONTFORK) };
    if result != 0 {
        log::debug!("madvise(MADV_DONTFORK): {}", std::io::Error::last_os_error());
    }
}
