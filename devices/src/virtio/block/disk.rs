use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use super::choice::{self, EngineKind};
use super::engine::Engine;
use super::error::{DiskError, DiskName};
use super::file::DiskFile;
use super::geometry::Geometry;
use super::rate_limit::RateLimit;
use super::state::{DiskHandle, State};
use super::sys;

/// The most queues that a disk can have.
pub const MAX_QUEUES: u16 = 16;
/// Bytes of a serial number (`VIRTIO_BLK_ID_BYTES`).
pub(super) const SERIAL_LEN: usize = 20;

/// A disk that is open, locked and ready to be given to a machine, with its settings.
///
/// It is raw: what the file or block device holds is what the guest sees, from the first byte to the
/// last. No format is ever guessed, or a guest could write the header of one and so make the monitor
/// open files of the guest's choice.
///
/// A writable disk is locked for itself alone, a read-only one together with other readers, by the
/// same locks as QEMU's; the lock ends when the disk is dropped.
///
/// The unit of the guest is a sector of 512 bytes. If the size is no multiple of that, the last sector
/// counts in full, as with QEMU: the guest reads zeroes behind the end, and a write to that sector
/// makes the file longer, to its end.
///
/// ```no_run
/// use sparkler_devices::virtio::block::{Block, Disk, RateLimit};
///
/// let root = Block::new(Disk::open("root.ext4")?);
/// let data = Disk::open_read_only("/dev/mapper/data")?
///     .serial("data")?
///     .queues(4)?
///     .rate_limit(RateLimit::new().iops(5_000));
/// # Ok::<(), sparkler_devices::virtio::block::DiskError>(())
/// ```
pub struct Disk {
    pub(super) state: Arc<State>,
    pub(super) source: Source,
    pub(super) writable: bool,
    pub(super) geometry: Geometry,
    pub(super) serial: [u8; SERIAL_LEN],
    pub(super) queues: u16,
    pub(super) rate_limit: RateLimit,
}

/// Where the engine of a session comes from.
pub(super) enum Source {
    File { file: Arc<DiskFile>, kind: EngineKind },
    Own(Box<dyn FnMut() -> io::Result<Box<dyn Engine>> + Send>),
}

impl Disk {
    /// Opens a file or block device for reading and writing.
    ///
    /// # Errors
    /// [`DiskError`] if it cannot be opened, is no file or block device, is empty, or is in use.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        Self::open_path(path.as_ref(), true)
    }

    /// Opens a file or block device for reading only. The guest cannot write to it either.
    ///
    /// # Errors
    /// As [`open`](Self::open); in use means that somebody may write to it.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, DiskError> {
        Self::open_path(path.as_ref(), false)
    }

    /// Takes a file or block device that is open already; read-only if it was opened so.
    ///
    /// Where `/proc` allows, it is opened anew from the descriptor, so that neither lock nor flags are
    /// shared with other descriptors of the same opening; `fd` is closed then.
    ///
    /// # Errors
    /// As [`open`](Self::open), and [`DiskError::Mode`] if it was not opened for reading.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, DiskError> {
        let name = DiskName::fd(fd.as_raw_fd());
        let file = File::from(fd);
        let inspect = |source| DiskError::Inspect { disk: name.clone(), source };
        let flags = sys::flags(&file).map_err(inspect)?;
        let writable = match flags & libc::O_ACCMODE {
            _ if flags & libc::O_PATH != 0 => None,
            libc::O_RDONLY => Some(false),
            libc::O_RDWR => Some(true),
            _ => None,
        };
        let Some(writable) = writable else {
            return Err(DiskError::Mode { disk: name });
        };
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let file = match open(Path::new(&path), writable) {
            Ok(own) => own,
            // In append mode, `pwrite` would put everything at the end.
            Err(_) if flags & libc::O_APPEND != 0 => return Err(DiskError::Mode { disk: name }),
            Err(_) => file,
        };
        Self::new(file, name, writable)
    }

    /// A disk of `size` bytes whose storage is not a file but what `engine` makes, anew for each
    /// session of the guest's driver.
    ///
    /// # Errors
    /// [`DiskError::Empty`] if `size` is zero.
    pub fn with_engine(
        size: u64,
        engine: impl FnMut() -> io::Result<Box<dyn Engine>> + Send + 'static,
    ) -> Result<Self, DiskError> {
        let name = DiskName::own();
        if size == 0 {
            return Err(DiskError::Empty { disk: name });
        }
        let state = Arc::new(State::new(name, size, None));
        Ok(Self::plain(state, Source::Own(Box::new(engine)), true, Geometry::default()))
    }

    /// Lets the guest read only, though the disk could be written. (It stays locked as before; only
    /// [`open_read_only`](Self::open_read_only) shares it with others.)
    #[must_use]
    pub fn read_only(self) -> Self {
        Self { writable: false, ..self }
    }

    /// The serial number by which the guest can find the disk (`/dev/disk/by-id/virtio-…` on Linux).
    /// None by default.
    ///
    /// # Errors
    /// [`DiskError::Serial`] if it is not 1 to 20 printable ASCII characters.
    pub fn serial(mut self, serial: &str) -> Result<Self, DiskError> {
        let printable = serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
        match self.serial.get_mut(..serial.len()) {
            Some(start) if printable && !serial.is_empty() => {
                start.copy_from_slice(serial.as_bytes())
            }
            _ => return Err(DiskError::Serial { serial: serial.to_owned() }),
        }
        if let Some(rest) = self.serial.get_mut(serial.len()..) {
            rest.fill(0);
        }
        Ok(self)
    }

    /// Goes around the host's page cache (`O_DIRECT`). What does not suit the alignment that this asks
    /// for still works, more slowly. Without effect on a disk that is no file.
    ///
    /// # Errors
    /// [`DiskError::Direct`] if the file system cannot do it.
    pub fn direct(self) -> Result<Self, DiskError> {
        if let Source::File { file, .. } = &self.source {
            let disk = || self.state.name.clone();
            file.set_direct().map_err(|source| DiskError::Direct { disk: disk(), source })?;
        }
        Ok(self)
    }

    /// How operations are carried out. Without effect on a disk that is no file.
    ///
    /// # Errors
    /// [`DiskError::IoUring`] if that is asked for and this process cannot have it.
    pub fn engine(mut self, engine: EngineKind) -> Result<Self, DiskError> {
        if let Source::File { file, kind } = &mut self.source {
            if engine == EngineKind::IoUring {
                choice::probe_io_uring(file).map_err(|source| DiskError::IoUring { source })?;
            }
            *kind = engine;
        }
        Ok(self)
    }

    /// How many queues the guest can use, one for each of its vCPUs for example; 1 by default. One
    /// thread serves all of them.
    ///
    /// # Errors
    /// [`DiskError::Queues`] if it is not 1 to [`MAX_QUEUES`].
    pub fn queues(self, queues: u16) -> Result<Self, DiskError> {
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(DiskError::Queues { queues, limit: MAX_QUEUES });
        }
        Ok(Self { queues, ..self })
    }

    /// How much the guest may ask of it in a second. No limit by default.
    #[must_use]
    pub fn rate_limit(self, rate_limit: RateLimit) -> Self {
        Self { rate_limit, ..self }
    }

    /// What can be done with the disk later, while a machine uses it.
    #[must_use]
    pub fn handle(&self) -> DiskHandle {
        DiskHandle(Arc::clone(&self.state))
    }

    fn open_path(path: &Path, writable: bool) -> Result<Self, DiskError> {
        let name = DiskName::path(path);
        let purpose = if writable { "reading and writing" } else { "reading" };
        match open(path, writable) {
            Ok(file) => Self::new(file, name, writable),
            Err(source) => Err(DiskError::Open { disk: name, purpose, source }),
        }
    }

    fn new(file: File, name: DiskName, writable: bool) -> Result<Self, DiskError> {
        let inspect = |source| DiskError::Inspect { disk: name.clone(), source };
        let Some(disk) = DiskFile::new(file).map_err(inspect)? else {
            return Err(DiskError::Kind { disk: name });
        };
        match disk.try_lock(writable) {
            Ok(true) => {}
            Ok(false) => return Err(DiskError::InUse { disk: name }),
            Err(source) => return Err(DiskError::Lock { disk: name, source }),
        }
        let size = disk.size().map_err(inspect)?;
        if size == 0 {
            return Err(DiskError::Empty { disk: name });
        }
        let geometry = disk.geometry();
        let file = Arc::new(disk);
        let state = Arc::new(State::new(name, size, Some(Arc::downgrade(&file))));
        let source = Source::File { file, kind: EngineKind::Auto };
        Ok(Self::plain(state, source, writable, geometry))
    }

    fn plain(state: Arc<State>, source: Source, writable: bool, geometry: Geometry) -> Self {
        let (serial, rate_limit) = ([0; SERIAL_LEN], RateLimit::new());
        Self { state, source, writable, geometry, serial, queues: 1, rate_limit }
    }
}

/// Opens without waiting for anything: a pipe would make this block without `O_NONBLOCK`, which is
/// taken off again, as io_uring heeds it even on files.
fn open(path: &Path, writable: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.read(true).write(writable).custom_flags(libc::O_NONBLOCK).open(path)?;
    sys::set_flags(&file, sys::flags(&file)? & !libc::O_NONBLOCK)?;
    Ok(file)
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Disk")
            .field("name", &self.state.name)
            .field("size", &self.state.size())
            .field("writable", &self.writable)
            .field("queues", &self.queues)
            .finish_non_exhaustive()
    }
}
