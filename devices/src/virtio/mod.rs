//! Virtio devices over MMIO (virtio 1.2).
//!
//! | type | what |
//! |---|---|
//! | [`VirtioDevice`] | a device: what it offers, and what it does while it is live |
//! | [`MmioTransport`] | puts a device on the MMIO bus: registers, status, negotiation, reset |
//! | [`Session`] | what a device has while it is live: its queues, memory, interrupt, a way to wait |
//! | [`Counters`] | what a device counts |
//! | [`Queue`], [`Chain`] | a checked ring, and a checked request from it |
//! | [`block::Block`] | the block device: disks |
//! | [`net::NetDevice`] | the network device: a network card on a tap, a socket, or a network of one's own |
//! | [`rng::Rng`] | the entropy device |
//!
//! Nothing that the guest writes, to registers or to rings, is trusted; a driver that breaks the rules
//! gets `DEVICE_NEEDS_RESET`, and a working device again after a reset.
//!
//! # A device of your own
//! This one upper-cases text: a request is text to read, and room for the answer. Its queue has 64
//! entries, and its configuration space says how much text it takes at once.
//!
//! ```
//! use std::sync::Arc;
//! use sparkler_devices::virtio::{
//!     ConfigBytes, ConfigSpace, DeviceError, Queue, Session, VirtioDevice,
//! };
//!
//! const MOST: u32 = 4096;
//!
//! struct Shout;
//!
//! impl VirtioDevice for Shout {
//!     fn device_type(&self) -> u32 {
//!         63
//!     }
//!     fn queue_sizes(&self) -> &[u16] {
//!         &[64]
//!     }
//!     fn config(&self) -> Arc<dyn ConfigSpace> {
//!         Arc::new(ConfigBytes::new(MOST.to_le_bytes()))
//!     }
//!     fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
//!         loop {
//!             answer(session.queue(0)?)?;
//!             if !session.wait(&[], None)? {
//!                 return Ok(()); // A reset, or the end of the machine.
//!             }
//!         }
//!     }
//! }
//!
//! fn answer(queue: &mut Queue) -> Result<(), DeviceError> {
//!     loop {
//!         while let Some(chain) = queue.pop()? {
//!             let len = chain.readable_len().min(chain.writable_len()).min(MOST as usize);
//!             let mut text = vec![0; len];
//!             chain.read_at(0, &mut text)?;
//!             text.make_ascii_uppercase();
//!             chain.write_at(0, &text)?;
//!             queue.push(chain, len)?;
//!         }
//!         queue.notify()?;
//!         if !queue.enable_notifications()? {
//!             return Ok(()); // The driver will notify when there is more.
//!         }
//!     }
//! }
//!
//! // A driver, as the feature `test-utils` has one for tests; no virtual machine is needed.
//! use sparkler_devices::virtio::mock::MockDriver;
//!
//! let mut driver = MockDriver::new(Box::new(Shout));
//! driver.start();
//! assert_eq!(driver.request(0, &[b"hello"], &[16]), b"HELLO");
//! ```

pub mod block;
mod chain;
mod coalesce;
mod config;
mod counters;
pub mod features;
mod mmio;
#[cfg(feature = "test-utils")]
pub mod mock;
pub mod net;
mod pause;
mod queue;
pub mod rng;
mod session;
mod setup;
mod shared;
pub mod status;
mod token_bucket;
mod walk;
mod worker;

use std::error::Error;
use std::io;
use std::sync::Arc;

pub use chain::{AccessError, Chain, Segment, Slices};
pub use config::{ConfigBytes, ConfigSpace};
pub use counters::{Counters, TransportStats};
pub use mmio::{MAX_QUEUE_SIZE, MmioTransport, QueueSizeError};
pub use queue::{Queue, QueueError};
pub use session::{Interest, Session, Waker};
pub use walk::ChainError;

/// A virtio device, independent of how the guest reaches it. The [module](self) shows a whole one.
pub trait VirtioDevice: Send + 'static {
    /// The device type (virtio 1.2, section 5): 1 for a network card, 2 for a disk, ...
    fn device_type(&self) -> u32;

    /// The feature bits of this device type that it offers. The transport adds those that it brings:
    /// [`features::VERSION_1`], [`features::RING_EVENT_IDX`], [`features::RING_INDIRECT_DESC`].
    fn features(&self) -> u64 {
        0
    }

    /// The largest size of each queue: powers of two up to [`MAX_QUEUE_SIZE`]. No chain has more
    /// descriptors than that.
    fn queue_sizes(&self) -> &[u16];

    /// How many of its queues, from the first on, have a notification of their own, which
    /// [`Session::kick`] gives away: for a device whose queues are served by somebody else, such as the
    /// host's kernel. Notifications of these queues do not end [`Session::wait`]. Asked once, when the device
    /// is put on a transport.
    fn kicks(&self) -> u16 {
        0
    }

    /// Whether the device can be used as it was set up. Asked once, when it is put on a transport.
    ///
    /// # Errors
    /// Anything: it is why the machine cannot be built.
    fn check(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(())
    }

    /// The configuration space. Asked once, when the device is put on a transport.
    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(ConfigBytes::default())
    }

    /// What it counts, for whoever watches the machine. Asked once, when the device is put on a
    /// transport.
    fn counters(&self) -> Arc<dyn Counters> {
        Arc::new(())
    }

    /// The life of the device from `DRIVER_OK` to reset, on a thread of its own. It returns `Ok` when
    /// [`Session::wait`] or [`Session::is_stopping`] says so, soon: the vCPU that resets the device waits
    /// for it, and so does whoever drops the machine. Requests in flight are completed or cancelled before,
    /// for the guest's buffers must not change afterwards; what the host is slow to complete, a disk's
    /// write for one, may so take longer. It is called again after a reset.
    ///
    /// While the machine is paused, this thread stands still in [`Session::wait`], and the device must
    /// have nothing in progress elsewhere: one with threads of its own or asynchronous I/O uses
    /// [`Session::set_busy`].
    ///
    /// # Errors
    /// Any error means `DEVICE_NEEDS_RESET`: the device is dead until the driver resets it. A panic ends
    /// the machine with an error. An I/O error that the device type can report in a request is not one.
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError>;
}

/// So that devices of different types can be kept together until a machine gets them.
impl<T: VirtioDevice + ?Sized> VirtioDevice for Box<T> {
    fn device_type(&self) -> u32 {
        (**self).device_type()
    }
    fn features(&self) -> u64 {
        (**self).features()
    }
    fn queue_sizes(&self) -> &[u16] {
        (**self).queue_sizes()
    }
    fn kicks(&self) -> u16 {
        (**self).kicks()
    }
    fn check(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        (**self).check()
    }
    fn config(&self) -> Arc<dyn ConfigSpace> {
        (**self).config()
    }
    fn counters(&self) -> Arc<dyn Counters> {
        (**self).counters()
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        (**self).run(session)
    }
}

/// Why a device cannot go on without a reset.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The driver broke the rules of a queue.
    #[error("the driver broke the rules of a queue")]
    Queue(#[from] QueueError),
    /// The driver broke the rules of the device type.
    #[error("the driver broke the rules of the device")]
    Driver(#[source] Box<dyn Error + Send + Sync>),
    /// The host failed.
    #[error("the host failed the device")]
    Host(#[from] io::Error),
    /// The device itself failed.
    #[error("the device failed")]
    Device(#[source] Box<dyn Error + Send + Sync>),
}

impl From<AccessError> for DeviceError {
    fn from(error: AccessError) -> Self {
        Self::Driver(Box::new(error))
    }
}
