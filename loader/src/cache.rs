//! Unpacked kernels, kept in a folder from one boot to the next.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

use crate::bzimage::Payload;
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
    /// The file is named by the image's BLAKE3 hash, so that a new kernel of the same name is never taken for
    /// the old one; looking it up costs reading the image. It is as large as the unpacked kernel, and stays
    /// until somebody removes it, which is safe at any time, also while machines run.
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
        let path = folder.join(self.hash()?).with_extension("vmlinux");
        let image = match self.entry(&path, payload.size()) {
            Some(image) => image,
            None => {
                self.make_entry(&path, &payload, &error)?;
                let broken = || io::Error::from(io::ErrorKind::InvalidData);
                let read = |source| error(CacheError::Io { what: "read what was written", source });
                self.entry(&path, payload.size()).ok_or_else(broken).map_err(read)?
            }
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
        error: &impl Fn(CacheError) -> LoadError,
    ) -> Result<(), LoadError> {
        let failed = |what| move |source| error(CacheError::Io { what, source });
        let (temporary, mut file) = Temporary::beside(path).map_err(failed("create a file"))?;
        let mut unwritten = None;
        let unpacked = payload.unpack(self.image(), &mut |bytes| {
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
        // On the disk before it has its name, so that no loss of power leaves a file of zeros there. Nobody
        // is to write to it any more: machines map it.
        file.set_permissions(Permissions::from_mode(0o400))
            .and_then(|()| file.sync_data())
            .and_then(|()| fs::rename(&temporary.0, path))
            .map_err(failed("write the unpacked kernel"))
    }

    /// The hash of the whole image, in hexadecimal digits.
    fn hash(&self) -> Result<String, LoadError> {
        let mut hasher = blake3::Hasher::new();
        let mut reader = self.image().reader(0, self.image().size());
        let mut chunk = vec![0; CHUNK];
        loop {
            match reader.read(&mut chunk) {
                Ok(0) => return Ok(hasher.finalize().to_hex().to_string()),
                Ok(len) => hasher.update(chunk.get(..len).unwrap_or_default()),
                Err(source) => {
                    let image = self.image().name().clone();
                    return Err(ImageError::Read { image, source }.into());
                }
            };
        }
    }
}

/// A file that is removed with this value, unless it was moved to its place.
struct Temporary(PathBuf);

impl Temporary {
    /// A new file, for us alone.
    fn beside(path: &Path) -> io::Result<(Self, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let path = path.with_extension(format!("{}-{number}.tmp", process::id()));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Ok(file) => return Ok((Self(path), file)),
                // Of a process that was killed, and had the same number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // After the move it is not there any more.
        let _ = fs::remove_file(&self.0);
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
