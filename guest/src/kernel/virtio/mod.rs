//! Virtio devices over MMIO (virtio 1.2), as their driver sees them.

mod blk;
mod content;
mod dma;
mod frames;
mod hostile;
mod iops;
mod irq;
mod mischief;
mod mmio;
mod net;
mod queue;
mod rng;
mod verify;
mod whole;

pub(crate) use frames::run as net;
pub(crate) use hostile::run as hostile;
pub(crate) use iops::run as iops;
pub(crate) use mmio::list;
pub(crate) use net::info as net_info;
pub(crate) use rng::run as rng;
pub(crate) use verify::run as verify;
pub(crate) use whole::{fill, info, sum};
