//! Kernels that several machines share: mapped into guest memory instead of copied.

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};

use vm_memory::GuestAddress;

/// What the loader, which knows of guest memory no more than how to write to it, asks of whoever mapped it.
pub trait MapPages {
    /// All of the `length` bytes from `address` on are about to be written: time for huge pages, if they
    /// are to be had.
    fn will_fill(&self, address: GuestAddress, length: u64) {
        let _ = (address, length);
    }

    /// Puts pages of a file into guest memory without copying them, so that all machines that only read a
    /// page have it in common.
    ///
    /// Makes the `length` bytes of guest memory from `address` on what `file` has at `offset`, privately:
    /// what is written there later is seen in this memory alone. All three numbers are multiples of
    /// 4 KiB, and the range is within guest memory. `Ok(false)` if this memory cannot be mapped
    /// over; then the bytes are copied instead.
    ///
    /// # Errors
    /// If the mapping failed; what the range holds is then unknown.
    fn map(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: GuestAddress,
        length: u64,
    ) -> io::Result<bool>;

    /// Whether nobody wants the machine any more. Asked every few milliseconds; loading then ends with an error.
    fn is_given_up(&self) -> bool {
        false
    }
}

/// Ends a loading that was given up.
pub(crate) fn check_wanted(pages: Option<&dyn MapPages>) -> io::Result<()> {
    if pages.is_some_and(MapPages::is_given_up) {
        return Err(io::Error::new(io::ErrorKind::Interrupted, "loading was given up"));
    }
    Ok(())
}

/// Seals a file in memory (memfd): nobody can change it any more, us included.
pub(crate) fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_WRITE | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open, and the request takes an integer.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Whether nobody can change the file's content or make it shorter: a memfd that is sealed so. Not one of
/// huge pages, parts of which cannot be mapped at any multiple of 4 KiB.
pub(crate) fn is_sealed(file: &File) -> bool {
    let needed = libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
    // SAFETY: the descriptor is open, and the request takes nothing. Other files than memfds refuse it.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & needed == needed && !is_hugetlbfs(file)
}

fn is_hugetlbfs(file: &File) -> bool {
    const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;
    let mut status = MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open, and `status` is ours for the kernel to fill.
    if unsafe { libc::fstatfs(file.as_raw_fd(), status.as_mut_ptr()) } < 0 {
        return true; // Nothing is known of it.
    }
    // SAFETY: the call succeeded, so it filled `status`.
    let status = unsafe { status.assume_init() };
    // The C libraries disagree about the types.
    u64::try_from(status.f_type).is_ok_and(|kind| kind == HUGETLBFS_MAGIC)
}

/// An empty file in memory.
pub(crate) fn memfd() -> io::Result<File> {
    let create = |flags| {
        // SAFETY: the name is a C string, and the descriptor is a new one that nobody else has.
        unsafe {
            let fd = libc::memfd_create(c"kernel".as_ptr(), flags);
            if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(File::from_raw_fd(fd)) }
        }
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // A host may insist that it cannot be executed; kernels before 6.3 do not know the flag.
    create(flags | libc::MFD_NOEXEC_SEAL).or_else(|_| create(flags))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_memfd_of_ordinary_pages_can_be_mapped_by_its_seals() {
        let file = memfd().unwrap();
        assert!(!is_sealed(&file));
        seal(&file).unwrap();
        assert!(is_sealed(&file));
        let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | libc::MFD_HUGETLB;
        // SAFETY: the name is a C string, and the descriptor is checked and new.
        let huge = unsafe {
            let fd = libc::memfd_create(c"huge".as_ptr(), flags);
            assert!(fd >= 0, "{}", io::Error::last_os_error());
            File::from_raw_fd(fd)
        };
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE;
        // SAFETY: the descriptor is open, and the request takes an integer.
        assert_eq!(unsafe { libc::fcntl(huge.as_raw_fd(), libc::F_ADD_SEALS, seals) }, 0);
        assert!(!is_sealed(&huge));
    }
}
