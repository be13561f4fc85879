//! The initial RAM disk.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::image::{Image, ImageError};

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
}
