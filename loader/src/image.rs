//! What a kernel or an initrd is read from: a file, an owned file descriptor, or bytes.

use std::borrow::Cow;
use std::fmt;
use std::fs::{File, FileType, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use thiserror::Error;
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};
use vm_memory::{ReadVolatile, VolatileMemoryError};

use crate::decompress::Sink;
use crate::map::{self, MapPages};

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
    /// Whether it is a file that nobody can change.
    sealed: bool,
}

#[derive(Debug)]
enum Source {
    /// Opened by us, so that nobody else moves its file offset: read at that offset straight into
    /// guest memory. The lock is for two loads at once.
    OwnFile(Mutex<File>),
    /// Handed to us: its offset may be shared with other descriptors (`dup`, `try_clone`), even
    /// those of other machines being built, so it is read with `pread`, which vm-memory lacks:
    /// through a small buffer (a fifth slower).
    SharedFile(File),
    Bytes(Cow<'static, [u8]>),
}

/// Small enough to stay in the CPU's cache.
const COPY_BUFFER: usize = 64 << 10;

/// A few milliseconds' worth, after which it is asked whether the rest is still wanted.
const COPY_PART: usize = 8 << 20;

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
        let size = checked_size(&name, &file)?;
        Ok(Self { name, source: Source::OwnFile(Mutex::new(file)), size, sealed: false })
    }

    pub(crate) fn fd(fd: OwnedFd) -> Result<Self, ImageError> {
        let name = ImageName::Fd(fd.as_raw_fd());
        let file = File::from(fd);
        // First the seals, then the size: of a file that is sealed in between, it could be another.
        let sealed = map::is_sealed(&file);
        let size = checked_size(&name, &file)?;
        Ok(Self { name, source: Source::SharedFile(file), size, sealed })
    }

    /// A memfd, sealed from now on, which goes by the `name` of where its content came from.
    pub(crate) fn sealed(name: ImageName, file: File) -> io::Result<Self> {
        map::seal(&file)?;
        let size = file.metadata()?.len();
        Ok(Self { name, source: Source::OwnFile(Mutex::new(file)), size, sealed: true })
    }

    /// A file of `size` bytes that we opened, which goes by the `name` of where it came from.
    #[cfg(feature = "kernel-cache")]
    pub(crate) fn own_file(name: ImageName, file: File, size: u64) -> Self {
        Self { name, source: Source::OwnFile(Mutex::new(file)), size, sealed: false }
    }

    /// Whether it is a file that nobody can change.
    pub(crate) fn is_sealed(&self) -> bool {
        self.sealed
    }

    pub(crate) fn bytes(bytes: Cow<'static, [u8]>) -> Self {
        let size = bytes.len() as u64;
        Self { name: ImageName::Bytes, source: Source::Bytes(bytes), size, sealed: false }
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

    /// Fills `buffer` from `offset` on.
    pub(crate) fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        match &self.source {
            Source::OwnFile(file) => {
                file.lock().unwrap_or_else(PoisonError::into_inner).read_exact_at(buffer, offset)
            }
            Source::SharedFile(file) => file.read_exact_at(buffer, offset),
            Source::Bytes(bytes) => {
                buffer.copy_from_slice(part(bytes, offset, buffer.len())?);
                Ok(())
            }
        }
    }

    /// Reads the `len` bytes from `offset` on, one after the other.
    pub(crate) fn reader(&self, offset: u64, len: u64) -> Reader<'_> {
        Reader { image: self, offset, left: len }
    }

    /// Reads `len` bytes from `offset` on; the caller has compared them with [`size`](Self::size).
    pub(crate) fn bytes_at(&self, offset: u64, len: usize) -> io::Result<Cow<'_, [u8]>> {
        if let Source::Bytes(bytes) = &self.source {
            return part(bytes, offset, len).map(Cow::Borrowed);
        }
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|_| io::ErrorKind::OutOfMemory)?;
        buffer.resize(len, 0);
        self.read_at(offset, &mut buffer)?;
        Ok(Cow::Owned(buffer))
    }

    /// Gives all of it to `sink`.
    pub(crate) fn read_into(&self, sink: &mut Sink<'_>) -> io::Result<()> {
        let mut reader = self.reader(0, self.size);
        let mut buffer = vec![0; COPY_BUFFER];
        loop {
            let len = reader.read(&mut buffer)?;
            match buffer.get(..len) {
                None | Some([]) => return Ok(()),
                Some(bytes) => sink(bytes)?,
            }
        }
    }

    /// Maps `len` bytes from `offset` on into guest memory at `address`, if that can be done.
    pub(crate) fn map_to(
        &self,
        offset: u64,
        len: u64,
        pages: &dyn MapPages,
        address: GuestAddress,
    ) -> io::Result<bool> {
        match &self.source {
            Source::OwnFile(file) => {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                pages.map(file.as_fd(), offset, address, len)
            }
            Source::SharedFile(file) => pages.map(file.as_fd(), offset, address, len),
            Source::Bytes(_) => Ok(false),
        }
    }

    /// Copies `len` bytes from `offset` on to guest memory at `address`, unless `pages` give up.
    pub(crate) fn copy_to<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        len: usize,
        (memory, pages): (&M, Option<&dyn MapPages>),
        address: GuestAddress,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            map::check_wanted(pages)?;
            let part = (len - done).min(COPY_PART);
            let (offset, address) = (offset + done as u64, address.unchecked_add(done as u64));
            self.copy_part(offset, part, memory, address)?;
            done += part;
        }
        Ok(())
    }

    fn copy_part<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        len: usize,
        memory: &M,
        address: GuestAddress,
    ) -> io::Result<()> {
        match &self.source {
            Source::OwnFile(file) => {
                let file = file.lock().unwrap_or_else(PoisonError::into_inner);
                copy_at_cursor(&file, offset, len, memory, address)
            }
            Source::SharedFile(file) => copy_buffered(file, offset, len, memory, address),
            Source::Bytes(bytes) => {
                memory.write_slice(part(bytes, offset, len)?, address).map_err(into_io)
            }
        }
    }
}

/// A part of an [`Image`], from its first byte to its last.
pub(crate) struct Reader<'a> {
    image: &'a Image,
    offset: u64,
    left: u64,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        self.image.read_at(self.offset, buffer.get_mut(..len).unwrap_or_default())?;
        self.offset = self.offset.saturating_add(len as u64);
        self.left = self.left.saturating_sub(len as u64);
        Ok(len)
    }
}

/// The size of a file that can be read at will and has something in it.
fn checked_size(name: &ImageName, file: &File) -> Result<u64, ImageError> {
    let metadata =
        file.metadata().map_err(|source| ImageError::Read { image: name.clone(), source })?;
    regular(metadata.file_type())
        .map_err(|kind| ImageError::NotAFile { image: name.clone(), kind })?;
    match metadata.len() {
        0 => Err(ImageError::Empty { image: name.clone() }),
        size => Ok(size),
    }
}

fn part(bytes: &[u8], offset: u64, len: usize) -> io::Result<&[u8]> {
    usize::try_from(offset)
        .ok()
        .and_then(|start| bytes.get(start..start.checked_add(len)?))
        .ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

/// Not `Bytes::read_exact_volatile_from`: that takes one short read, as at 2 GiB, for the end.
fn copy_at_cursor<M: GuestMemoryBackend>(
    mut file: &File,
    offset: u64,
    len: usize,
    memory: &M,
    address: GuestAddress,
) -> io::Result<()> {
    file.seek(SeekFrom::Start(offset))?;
    for slice in memory.get_slices(address, len) {
        let mut slice = slice.map_err(into_io)?;
        file.read_exact_volatile(&mut slice).map_err(|error| match error {
            VolatileMemoryError::IOError(error) => error,
            other => io::Error::other(other),
        })?;
    }
    Ok(())
}

fn copy_buffered<M: GuestMemoryBackend>(
    file: &File,
    mut offset: u64,
    len: usize,
    memory: &M,
    address: GuestAddress,
) -> io::Result<()> {
    let mut buffer = vec![0; len.min(COPY_BUFFER)];
    let end = offset.saturating_add(len as u64);
    let start = offset;
    while offset < end {
        let size = usize::try_from(end - offset).unwrap_or(usize::MAX).min(COPY_BUFFER);
        let Some(chunk) = buffer.get_mut(..size) else { break };
        file.read_exact_at(chunk, offset)?;
        memory.write_slice(chunk, address.unchecked_add(offset - start)).map_err(into_io)?;
        offset += size as u64;
    }
    Ok(())
}

fn into_io(error: GuestMemoryError) -> io::Error {
    match error {
        GuestMemoryError::IOError(error) => error,
        other => io::Error::other(other),
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
