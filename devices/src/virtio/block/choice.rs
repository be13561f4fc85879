use std::io;
use std::sync::Arc;

use super::engine::Engine;
use super::file::DiskFile;
use super::sync_engine::SyncEngine;
#[cfg(feature = "io-uring")]
use super::uring::UringEngine;

/// How the operations of a disk are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum EngineKind {
    /// io_uring if this process can have it and the storage is not in memory (tmpfs) anyway, where
    /// there is nothing to wait for; else one system call for each operation.
    #[default]
    Auto,
    /// One system call for each operation, one after the other.
    Sync,
    /// io_uring: many operations at once. Needs the feature `io-uring` of this crate.
    IoUring,
}

/// Makes the engine of a session with tags below `tags`.
pub(super) fn engine(
    kind: EngineKind,
    file: &Arc<DiskFile>,
    tags: u16,
) -> io::Result<Box<dyn Engine>> {
    let sync = || Box::new(SyncEngine::new(Arc::clone(file)));
    match kind {
        EngineKind::Sync => Ok(sync()),
        EngineKind::IoUring => io_uring(file, tags),
        EngineKind::Auto if file.in_memory() => Ok(sync()),
        EngineKind::Auto => Ok(io_uring(file, tags).unwrap_or_else(|_| sync())),
    }
}

/// Whether this process can have io_uring at all.
pub(super) fn probe_io_uring(file: &Arc<DiskFile>) -> io::Result<()> {
    io_uring(file, 1).map(|_| ())
}

#[cfg(feature = "io-uring")]
fn io_uring(file: &Arc<DiskFile>, tags: u16) -> io::Result<Box<dyn Engine>> {
    Ok(Box::new(UringEngine::new(Arc::clone(file), tags)?))
}

#[cfg(not(feature = "io-uring"))]
fn io_uring(_file: &Arc<DiskFile>, _tags: u16) -> io::Result<Box<dyn Engine>> {
    Err(io::ErrorKind::Unsupported.into())
}
