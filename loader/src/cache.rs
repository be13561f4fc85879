//! Unpacked kernels, kept in a folder from one boot to the next.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use blake3::{Hash, Hasher};
use thiserror::Error;

use crate::bzimage::{BzImageError, Payload};
use crate::elf::Elf;
use crate::error::LoadError;
use crate::image::{Image, ImageError};
use crate::kernel::Kernel;
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
    /// may look into the folder may read it: one that root fills serves every user.
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
        let bzimage = self.bzimage()?;
        let payload = bzimage.payload(self.image(), HOLE_START.0);
        let payload = payload.map_err(|source| self.bzimage_error(source))?;
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
        let (temporary, mut file) = Temporary::beside(path).map_err(failed("create a file"))?;
        let mut data = Hashed::new(payload.reader(self.image()));
        let mut unwritten = None;
        let unpacked = payload.unpack_from(&mut data, &mut |bytes| {
            file.write_all(bytes).map_err(|source| {
                let kind = source.kind();
                unwritten = Some(source);
                kind.into()
            })
        });
        if let Some(source) = unwritten {
            return Err(failed("write the unpacked kernel")(source));
        }
        unpacked.map_err(|source| self.bzimage_error(source))?;
        // What was unpacked must be what was hashed, or whoever can write to one image could put a kernel of
        // theirs in the place of another.
        if data.finish().ok() != Some(hash) {
            return Err(error(CacheError::Changed));
        }
        temporary.finish(&file).map_err(failed("write the unpacked kernel"))?;
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

/// A file that is removed with this value, unless it was moved to its place.
struct Temporary(Option<PathBuf>);

impl Temporary {
    /// A new file, for us alone.
    fn beside(path: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = path.with_extension(format!("{}-{number}.tmp", process::id()));
            let mut options = OpenOptions::new();
            match options.read(true).write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok((Self(Some(path)), file)),
                // Of a process that was killed, and had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Nobody is to write to it any more, as machines map it; and it is on the disk before it has its name, so that
    /// no loss of power leaves a file of zeros there.
    fn finish(&self, file: &File) -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_data()
    }

    /// Moves it to its place.
    fn keep(mut self, path: &Path) -> io::Result<()> {
        let Some(temporary) = &self.0 else { return Ok(()) };
        fs::rename(temporary, path)?;
        self.0 = None;
        Ok(())
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // It is not needed, and may be removed by anybody else.
            let _ = fs::remove_file(path);
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
