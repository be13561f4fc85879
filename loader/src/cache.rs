//! Unpacked kernels, kept in a folder from one boot to the next.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::{Hash, Hasher};
use thiserror::Error;

use crate::bzimage::{BzImageError, Payload};
use crate::decompress::Sink;
use crate::elf::Elf;
use crate::error::LoadError;
use crate::image::{Image, ImageError};
use crate::kernel::{Kernel, write_to};
use crate::layout::HOLE_START;

/// Why a folder cannot keep unpacked kernels.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CacheError {
    /// Somebody else could put another kernel there, or change one that runs.
    #[error(
        "others may write to it; it must belong to this user or to root, and only its owner may \
         write to it (chmod go-w)"
    )]
    NotPrivate,
    /// The image was changed while it was read.
    #[error("the image was changed while it was read: try again")]
    Changed,
    /// The folder is not there, or a file in it cannot be read or written.
    #[error("cannot {what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

/// So much of the image is hashed at a time: the processor's cache holds it.
const CHUNK: usize = 128 << 10;

/// Who else but its owner may write to a file: its group, and everybody.
const WRITABLE_BY_OTHERS: u32 = 0o022;

impl Kernel {
    /// Unpacks a bzImage into a file of `folder`, once: whoever asks again for a kernel with the same
    /// content, in this process or another, today or after the host's next boot, has the file, which is
    /// loaded as any ELF kernel is: [`mapped`](Self::mapped) lets machines map it, which is safe here, as
    /// nobody writes to it any more. A kernel that is an ELF file needs none of this, and is returned as it is.
    ///
    /// The file is named by the BLAKE3 hash of what it was unpacked from, so that a new kernel of the same name
    /// is never taken for the old one; looking it up costs reading the image. It is as large as the unpacked
    /// kernel, and stays until somebody removes it, which is safe at any time, also while machines run. Whoever
    /// may look into the folder may read it: one that root fills serves every user. It has no name before it is
    /// whole, so that a process that is killed leaves nothing behind; where the file system knows no such files, as
    /// NFS, that is a `.tmp` file, which may be removed.
    ///
    /// The folder is trusted: it must belong to this user or to root, and nobody else may write to it. A file
    /// that has another size than the image states, or is no ELF kernel, as one that was cut off, is
    /// replaced. What is within it is not compared with the image again, which would cost what
    /// unpacking it does.
    ///
    /// ```no_run
    /// # use sparkler_loader::Kernel;
    /// let kernel = Kernel::file("/boot/vmlinuz")?.cached("/var/cache/kernels")?.mapped();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadError::Cache`] if the folder is not there, is not private, or cannot be written to; another
    /// [`LoadError`] if the image cannot be read or unpacked.
    pub fn cached(self, folder: impl AsRef<Path>) -> Result<Self, LoadError> {
        let folder = folder.as_ref();
        let error = |source| LoadError::Cache { folder: folder.to_owned(), source };
        check_private(folder).map_err(error)?;
        if self.is_elf()? {
            return Ok(self);
        }
        let (bzimage, payload) = self.payload(HOLE_START.0)?;
        let read = |source| ImageError::Read { image: self.image().name().clone(), source };
        let hash = Hashed::new(payload.reader(self.image())).finish().map_err(read)?;
        let path = folder.join(hash.to_hex().as_str()).with_extension("vmlinux");
        let image = match self.entry(&path, payload.size()) {
            Some(image) => image,
            None => self.make_entry(&path, &payload, hash, &error)?,
        };
        Ok(self.unpacked(image, bzimage))
    }

    /// The file at `path`, if it can be used.
    fn entry(&self, path: &Path, size: u64) -> Option<Image> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(path)
            .ok()?;
        let metadata = file.metadata().ok()?;
        if !metadata.is_file() || metadata.len() != size || !is_private(&metadata) {
            return None;
        }
        let image = Image::own_file(self.image().name().clone(), file, size);
        Elf::parse(&image).is_ok().then_some(image)
    }

    /// Writes the unpacked kernel beside its place, and moves it there once it is whole.
    fn make_entry(
        &self,
        path: &Path,
        payload: &Payload,
        hash: Hash,
        error: &impl Fn(CacheError) -> LoadError,
    ) -> Result<Image, LoadError> {
        let failed = |what| move |source| error(CacheError::Io { what, source });
        let mut temporary = Temporary::beside(path).map_err(failed("create a file"))?;
        let mut data = Hashed::new(payload.reader(self.image()));
        let broken = |source| self.bzimage_error(source);
        let unpack = |sink: &mut Sink<'_>| payload.unpack(&mut data, sink).map_err(broken);
        write_to(&mut temporary.file, unpack, failed("write the unpacked kernel"))?;
        // What was unpacked must be what was hashed, or whoever can write to one image could put a kernel of
        // theirs in the place of another.
        if data.finish().ok() != Some(hash) {
            return Err(error(CacheError::Changed));
        }
        temporary.finish().map_err(failed("write the unpacked kernel"))?;
        let file = temporary
            .file
            .try_clone()
            .map_err(failed("duplicate the unpacked kernel's file descriptor"))?;
        let image = Image::own_file(self.image().name().clone(), file, payload.size());
        Elf::parse(&image).map_err(|source| self.bzimage_error(BzImageError::Elf(source)))?;
        temporary.keep(path).map_err(failed("move the unpacked kernel to its place"))?;
        Ok(image)
    }
}

/// A reader whose bytes are hashed on the way.
struct Hashed<R> {
    data: R,
    hasher: Hasher,
}

impl<R: Read> Hashed<R> {
    fn new(data: R) -> Self {
        Self { data, hasher: Hasher::new() }
    }

    /// The hash of all of it, the rest that nobody has read included.
    fn finish(mut self) -> io::Result<Hash> {
        let mut chunk = vec![0; CHUNK];
        while self.read(&mut chunk)? > 0 {}
        Ok(self.hasher.finalize())
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = self.data.read(buffer)?;
        self.hasher.update(buffer.get(..len).unwrap_or_default());
        Ok(len)
    }
}

/// A file that is not at its place yet. The name that it may have meanwhile is removed with this value.
#[derive(Debug)]
struct Temporary {
    file: File,
    name: Option<PathBuf>,
}

impl Temporary {
    /// A new file, for us alone. It has no name where the file system can do that, so that a process that is
    /// killed leaves nothing behind. NFS cannot, nor many of FUSE, nor overlayfs before Linux 6.3.
    fn beside(path: &Path) -> io::Result<Self> {
        let folder = path.parent().unwrap_or(path);
        match options().custom_flags(libc::O_TMPFILE).open(folder) {
            // Without /proc it could not be given a name later.
            Ok(file) if path_of(&file).exists() => Ok(Self { file, name: None }),
            Ok(_) => Self::named(path),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Self::named(path),
            Err(error) => Err(error),
        }
    }

    fn named(path: &Path) -> io::Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = path.with_extension(format!("{}-{number}.tmp", process::id()));
            match options().create_new(true).open(&name) {
                Ok(file) => return Ok(Self { file, name: Some(name) }),
                // Of a process that was killed, and had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Nobody is to write to it any more, as machines map it; and it is on the disk before it is at its place, so
    /// that no loss of power leaves a file of zeros there.
    fn finish(&self) -> io::Result<()> {
        self.file.set_permissions(Permissions::from_mode(0o444))?;
        self.file.sync_data()
    }

    /// Moves it to its place, whatever is there.
    fn keep(mut self, path: &Path) -> io::Result<()> {
        match &self.name {
            Some(name) => fs::rename(name, path)?,
            None => link(&self.file, path)?,
        }
        self.name = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // It is not needed, and may be removed by anybody else.
            let _ = fs::remove_file(name);
        }
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

/// Where the kernel has an open file, also one without a name.
fn path_of(file: &File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Names a file that has no name, in the place of what may be there.
#[allow(unsafe_code)] // One system call: the standard library's does not follow links.
fn link(file: &File, path: &Path) -> io::Result<()> {
    let from = CString::new(path_of(file).into_os_string().into_vec())?;
    let to = CString::new(path.as_os_str().as_bytes())?;
    loop {
        let (here, follow) = (libc::AT_FDCWD, libc::AT_SYMLINK_FOLLOW);
        // SAFETY: both are C strings, and the kernel only reads them.
        if unsafe { libc::linkat(here, from.as_ptr(), here, to.as_ptr(), follow) } == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::AlreadyExists {
            return Err(error);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
}

fn check_private(folder: &Path) -> Result<(), CacheError> {
    let look = |source| CacheError::Io { what: "look at it", source };
    let metadata = fs::metadata(folder).map_err(look)?;
    if !metadata.is_dir() {
        return Err(look(io::ErrorKind::NotADirectory.into()));
    }
    if is_private(&metadata) { Ok(()) } else { Err(CacheError::NotPrivate) }
}

/// Whether nobody but this user and root can write there.
#[allow(unsafe_code)] // One system call.
fn is_private(metadata: &fs::Metadata) -> bool {
    // SAFETY: the call has no arguments and always succeeds.
    let user = unsafe { libc::geteuid() };
    [0, user].contains(&metadata.uid()) && metadata.mode() & WRITABLE_BY_OTHERS == 0
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_file_takes_its_place_with_and_without_a_name_before() {
        // Not every file system can have files without names; the one in memory can.
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = folder.path().join("kernel");
        let entries = || fs::read_dir(folder.path()).unwrap().count();
        for (make, names) in [(Temporary::beside as fn(&Path) -> _, 0), (Temporary::named, 1)] {
            let make = || -> Temporary { make(&path).unwrap() };
            drop(make());
            assert_eq!(entries(), 0);
            for content in ["first", "second"] {
                let mut temporary = make();
                temporary.file.write_all(content.as_bytes()).unwrap();
                assert_eq!(entries(), names + usize::from(path.exists()));
                temporary.finish().unwrap();
                temporary.keep(&path).unwrap();
                assert_eq!(fs::read_to_string(&path).unwrap(), content);
                assert_eq!(entries(), 1);
            }
            fs::remove_file(&path).unwrap();
        }
    }
}
