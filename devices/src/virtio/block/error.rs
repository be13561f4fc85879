use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// What a disk was made from, for messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskName(Name);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Path(PathBuf),
    Fd(i32),
    Own,
}

impl DiskName {
    pub(super) fn path(path: &Path) -> Self {
        Self(Name::Path(path.to_owned()))
    }

    pub(super) fn fd(fd: i32) -> Self {
        Self(Name::Fd(fd))
    }

    /// Of storage that is no file.
    pub(super) fn own() -> Self {
        Self(Name::Own)
    }
}

impl fmt::Display for DiskName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Name::Path(path) => write!(f, "{}", path.display()),
            Name::Fd(fd) => write!(f, "file descriptor {fd}"),
            Name::Own => f.write_str("with an engine of its own"),
        }
    }
}

/// Why a file cannot be a disk, or not in this way.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DiskError {
    /// It cannot be opened.
    #[error("cannot open the disk {disk} for {purpose}")]
    Open {
        /// Which file.
        disk: DiskName,
        /// "reading" or "reading and writing".
        purpose: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// It is a directory, a pipe, a terminal …
    #[error("the disk {disk} is neither a regular file nor a block device")]
    Kind {
        /// Which file.
        disk: DiskName,
    },
    /// A file descriptor that was opened for writing only, for appending, or as a mere path.
    #[error(
        "the disk {disk} must be open for reading, or for reading and writing without append mode"
    )]
    Mode {
        /// Which file.
        disk: DiskName,
    },
    /// Its size or its flags cannot be read.
    #[error("cannot look at the disk {disk}")]
    Inspect {
        /// Which file.
        disk: DiskName,
        /// The reason.
        source: io::Error,
    },
    /// It holds nothing.
    #[error("the disk {disk} is empty; it needs at least one sector of 512 bytes")]
    Empty {
        /// Which file.
        disk: DiskName,
    },
    /// Another machine or process uses it.
    #[error(
        "the disk {disk} is in use by another machine or process; \
         only disks that are read-only everywhere can be shared"
    )]
    InUse {
        /// Which file.
        disk: DiskName,
    },
    /// Its file system cannot lock files.
    #[error("cannot lock the disk {disk} against use by others")]
    Lock {
        /// Which file.
        disk: DiskName,
        /// The reason.
        source: io::Error,
    },
    /// It cannot be used around the host's page cache.
    #[error("the disk {disk} cannot do direct I/O")]
    Direct {
        /// Which file.
        disk: DiskName,
        /// The reason.
        source: io::Error,
    },
    /// A serial number must fit into the 20 bytes of the device.
    #[error("the serial number {serial:?} must be 1 to 20 printable ASCII characters")]
    Serial {
        /// What was given.
        serial: String,
    },
    /// Too few or too many queues.
    #[error("a disk has 1 to {limit} queues, not {queues}")]
    Queues {
        /// What was asked for.
        queues: u16,
        /// The most there can be.
        limit: u16,
    },
    /// io_uring was asked for and the kernel does not allow it here.
    #[error("this host's kernel does not offer io_uring to this process")]
    IoUring {
        /// The reason.
        source: io::Error,
    },
    /// There is no file to look at again: the disk has an engine of its own, or is gone.
    #[error("only a disk that is a file and still in use can be refreshed")]
    NoFile,
}
