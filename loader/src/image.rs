//! What a kernel or an initrd is read from: a file, an owned file descriptor, or bytes.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

/// How messages name an image.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageName {
    /// A file opened by its path.
    Path(PathBuf),
    /// A file handed over open, with the number that its descriptor has.
    Fd(RawFd),
    /// Bytes in the memory of this process.
    Bytes,
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "`{}`", path.display()),
            Self::Fd(fd) => write!(f, "file descriptor {fd}"),
            Self::Bytes => f.write_str("the image in memory"),
        }
    }
}

/// Why an image cannot be used at all, whatever the machine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The file cannot be opened: not there, or not for us.
    #[error("cannot open {image}")]
    Open {
        /// Which image.
        image: ImageName,
        /// The reason.
        source: io::Error,
    },
    /// A directory, pipe, socket or device. Their size is unknown, and reading them may never end.
    #[error("{image} is {kind}; a regular file is needed")]
    NotAFile {
        /// Which image.
        image: ImageName,
        /// What it is, with its article.
        kind: &'static str,
    },
    /// There is nothing in it.
    #[error("{image} is empty")]
    Empty {
        /// Which image.
        image: ImageName,
    },
    /// The file cannot be read.
    #[error("cannot read {image}")]
    Read {
        /// Which image.
        image: ImageName,
        /// The reason.
        source: io::Error,
    },
    /// The content is neither ELF nor bzImage.
    #[error("{image} is {found}; a kernel is needed: an ELF file (vmlinux) or a bzImage (vmlinuz)")]
    NotAKernel {
        /// Which image.
        image: ImageName,
        /// What it looks like, with its article.
        found: &'static str,
    },
}

/// Random access to an image of a known size.
#[derive(Debug)]
pub(crate) struct Image {
    name: ImageName,
    source: Source,
    size: u64,
}

#[derive(Debug)]
enum Source {
    File(File),
    Bytes(Cow<'static, [u8]>),
}

impl Image {
    pub(crate) fn file(path: &Path) -> Result<Self, ImageError> {
        let name = ImageName::Path(path.to_owned());
        let open = |source| ImageError::Open { image: name.clone(), source };
        // Looked at before it is opened, since opening alone makes some devices act.
        let file_type = std::fs::metadata(path).map_err(open)?.file_type();
        regular(file_type).map_err(|kind| ImageError::NotAFile { image: name.clone(), kind })?;
        // O_NONBLOCK: if a pipe took the file's place meanwhile, opening must not wait for a writer.
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(open)?;
        Self::from_file(name, file)
    }

    pub(crate) fn fd(fd: OwnedFd) -> Result<Self, ImageError> {
        Self::from_file(ImageName::Fd(fd.as_raw_fd()), File::from(fd))
    }

    pub(crate) fn bytes(bytes: Cow<'static, [u8]>) -> Self {
        let size = bytes.len() as u64;
        Self { name: ImageName::Bytes, source: Source::Bytes(bytes), size }
    }

    fn from_file(name: ImageName, file: File) -> Result<Self, ImageError> {
        let metadata = match file.metadata() {
            Ok(metadata) => metadata,
            Err(source) => return Err(ImageError::Read { image: name, source }),
        };
        if let Err(kind) = regular(metadata.file_type()) {
            return Err(ImageError::NotAFile { image: name, kind });
        }
        let image = Self { name, source: Source::File(file), size: metadata.len() };
        image.check_not_empty()?;
        Ok(image)
    }

    pub(crate) fn check_not_empty(&self) -> Result<(), ImageError> {
        if self.size == 0 {
            return Err(ImageError::Empty { image: self.name.clone() });
        }
        Ok(())
    }

    pub(crate) fn name(&self) -> &ImageName {
        &self.name
    }

    /// Bytes in the image when it was opened.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }
}

fn regular(file_type: FileType) -> Result<(), &'static str> {
    match file_type {
        t if t.is_file() => Ok(()),
        t if t.is_dir() => Err("a directory"),
        t if t.is_fifo() => Err("a pipe"),
        t if t.is_socket() => Err("a socket"),
        t if t.is_char_device() => Err("a character device"),
        t if t.is_block_device() => Err("a block device"),
        _ => Err("a special file"),
    }
}
