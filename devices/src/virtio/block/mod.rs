//! The block device (virtio 1.2, section 5.2): a file or block device of the host as a disk of the guest.
//!
//! | type | what |
//! |---|---|
//! | [`Disk`] | an open, locked file or block device and its settings |
//! | [`Block`] | the virtio device that a disk becomes |
//! | [`DiskHandle`] | resize and counters, while a machine uses the disk |
//! | [`Engine`] | how operations are carried out: system calls, io_uring, or storage of one's own |
//!
//! # What a guest can rely on
//! - **Durability.** A flush is an `fdatasync` that begins after the flush was asked for, so it covers
//!   every write that was complete by then. If the driver did not negotiate flushes, or chose write
//!   through, each write is followed by an `fdatasync` before it is complete. Requests that wait for
//!   one at the same time share it, and its failure.
//! - **Order.** Requests may be carried out in any order, as the specification allows.
//! - **Errors.** A request that breaks the rules or that the host fails ends with
//!   `VIRTIO_BLK_S_IOERR`, an unknown one with `VIRTIO_BLK_S_UNSUPP`, and the next one works. Only a
//!   request without room for its status needs a reset.
//! - **A file that shrinks.** Reads beyond its end are errors; a write makes it longer again.
//!
//! One thread serves all queues of a disk. Several queues spare the guest's vCPUs a lock, not the host
//! a wait: the engine has all of the disk's requests in flight at once anyway.
//!
//! A driver that offers more requests before it has heard of the answers is interrupted once for many of
//! them, up to five milliseconds after the first. That is only done where its requests are 50 microseconds
//! apart or more, as they are under nested virtualization.
//!
//! `SIZE_MAX` is not offered: a buffer may be of any size, as large transfers are cut up here.

mod choice;
mod config;
mod disk;
mod engine;
mod error;
mod file;
mod geometry;
mod lock;
mod rate_limit;
mod request;
mod requests;
mod state;
mod stats;
mod sync_engine;
mod sys;
mod task;
#[cfg(feature = "io-uring")]
mod uring;
mod worker;

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_CONFIG_WCE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH,
    VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_TOPOLOGY,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;

pub use choice::EngineKind;
pub use disk::{Disk, MAX_QUEUES};
pub use engine::{Completion, Data, Engine, Operation};
pub use error::{DiskError, DiskName};
pub use geometry::Geometry;
pub use rate_limit::RateLimit;
pub use request::SECTOR;
pub use state::DiskHandle;
pub use stats::DiskStats;

use super::token_bucket::Limiter;
use super::{ConfigSpace, Counters, DeviceError, Session, VirtioDevice};
use config::Config;
use disk::Source;
use requests::{Requests, Settings};

/// Requests that each queue can hold.
const QUEUE_SIZE: u16 = 256;
/// Buffers of data in a request: header and status need a descriptor each.
const MAX_SEGMENTS: u32 = 254;

/// A disk as a virtio device.
pub struct Block {
    disk: Disk,
    queue_sizes: Vec<u16>,
    /// It outlives sessions: a reset forgives no debt.
    limiter: Option<Limiter>,
}

impl Block {
    /// The device for `disk`.
    #[must_use]
    pub fn new(disk: Disk) -> Self {
        let queue_sizes = vec![QUEUE_SIZE; disk.queues.into()];
        let limiter = disk.rate_limit.limiter(Instant::now());
        Self { disk, queue_sizes, limiter }
    }
}

impl Disk {
    fn requests(&mut self, features: u64, limit: u16) -> io::Result<Requests<'_>> {
        let engine = match &mut self.source {
            // One tag is for syncs.
            Source::File { file, kind } => choice::engine(*kind, file, limit.saturating_add(1))?,
            Source::Own(make) => make()?,
        };
        let settings = Settings {
            read_only: !self.writable,
            discard: has(features, VIRTIO_BLK_F_DISCARD),
            write_zeroes: has(features, VIRTIO_BLK_F_WRITE_ZEROES),
            serial: self.serial,
        };
        Ok(Requests::new(engine, limit, settings, &self.state))
    }
}

impl VirtioDevice for Block {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = bit(VIRTIO_BLK_F_SEG_MAX)
            | bit(VIRTIO_BLK_F_BLK_SIZE)
            | bit(VIRTIO_BLK_F_TOPOLOGY)
            | bit(VIRTIO_BLK_F_FLUSH)
            | bit(VIRTIO_BLK_F_CONFIG_WCE);
        let queues = if self.disk.queues > 1 { bit(VIRTIO_BLK_F_MQ) } else { 0 };
        let access = if self.disk.writable {
            bit(VIRTIO_BLK_F_DISCARD) | bit(VIRTIO_BLK_F_WRITE_ZEROES)
        } else {
            bit(VIRTIO_BLK_F_RO)
        };
        always | queues | access
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Config {
            state: Arc::clone(&self.disk.state),
            geometry: self.disk.geometry,
            max_segments: MAX_SEGMENTS,
            queues: self.disk.queues,
        })
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.disk.state) as _
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        worker::run(self, session)
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Block").field(&self.disk).finish()
    }
}

fn bit(feature: u32) -> u64 {
    1u64.checked_shl(feature).unwrap_or(0)
}

fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}
