//! The initial RAM disk.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::error::LoadError;
use crate::image::{Image, ImageError};
use crate::map::MapPages;

/// The kernel's page size, to which the initrd is aligned.
const PAGE_SIZE: u64 = 0x1000;

/// An initial RAM disk (initramfs). Its content is the kernel's affair and is not looked at.
#[derive(Debug)]
pub struct Initrd(Image);

impl Initrd {
    /// The initrd in the file at `path`. Nothing is read before the kernel is loaded.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there, not a regular file, or empty.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Image::file(path.as_ref()).map(Self)
    }

    /// The initrd in a file that is open for reading already; the descriptor's file offset is
    /// neither used nor moved.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not a regular file, or empty.
    pub fn fd(fd: OwnedFd) -> Result<Self, ImageError> {
        Image::fd(fd).map(Self)
    }

    /// The initrd in `bytes`. That there are any is checked when the kernel is loaded.
    pub fn bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self(Image::bytes(bytes.into()))
    }

    /// How many bytes it has.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        self.0.size()
    }

    /// Where the initrd goes: as high as it can between `kernel_end` and `limit`, on a page
    /// boundary, so that it is out of the kernel's way. Returns its address and its size.
    pub(crate) fn place(&self, kernel_end: u64, limit: u64) -> Result<(u64, u64), LoadError> {
        self.0.check_not_empty()?;
        let size = self.0.size();
        limit
            .checked_sub(size)
            .map(|address| address & !(PAGE_SIZE - 1))
            .filter(|&address| address >= kernel_end)
            .map(|address| (address, size))
            .ok_or_else(|| LoadError::InitrdTooLarge {
                image: self.0.name().clone(),
                size,
                available: limit.saturating_sub(kernel_end),
                limit,
            })
    }

    pub(crate) fn load<M: GuestMemoryBackend>(
        &self,
        memory: (&M, Option<&dyn MapPages>),
        address: u64,
    ) -> Result<(), LoadError> {
        // It fits, since it was placed in memory.
        let size = usize::try_from(self.0.size()).unwrap_or(usize::MAX);
        self.0
            .copy_to(0, size, memory, GuestAddress(address))
            .map_err(|source| ImageError::Read { image: self.0.name().clone(), source }.into())
    }
}
