//! Queues whose frames the host's kernel moves (vhost-net), between guest memory and a tap.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use thiserror::Error;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use virtio_queue::QueueT;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::super::{Interest, Queue, Session, features};
use super::error::NetError;
use super::vhost_sys::{self as sys, Placement, Ring};
use crate::sys::borrow;

/// What the transport offers to every driver, and all cards have: a vhost-net that lacks one cannot be used.
const NEEDED: [u64; 4] = [
    features::VERSION_1,
    features::RING_EVENT_IDX,
    features::RING_INDIRECT_DESC,
    1 << VIRTIO_NET_F_MRG_RXBUF, // Bits of features are numbered.
];

/// The vhost-nets of a card.
#[derive(Debug)]
pub(super) struct Vhost {
    /// One for each pair of queues.
    pub(super) pairs: Vec<VhostPair>,
    pub(super) events: Events,
}

/// By which the kernel tells of all queues of a card.
#[derive(Debug)]
pub(super) struct Events {
    /// The driver is to be interrupted.
    pub(super) call: EventFd,
    /// Something is wrong with a queue, or the tap.
    pub(super) error: EventFd,
}

/// One pair of queues.
#[derive(Debug)]
pub(super) struct VhostPair {
    /// None if it could not be made to let go of guest memory.
    fd: Option<OwnedFd>,
    owned: bool,
    /// What the driver set up.
    rings: Vec<Ring>,
    running: bool,
}

impl Vhost {
    pub(super) fn open(pairs: usize) -> Result<Self, NetError> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(NetError::VhostOpen);
        Ok(Self {
            pairs: (0..pairs).map(|_| VhostPair::open()).collect::<Result<_, _>>()?,
            events: Events { call: event()?, error: event()? },
        })
    }
}

/// The kernel found a queue, or what is in it, to break the rules; it does not say how.
#[derive(Debug, Error)]
#[error("vhost-net met an error in a queue")]
pub(super) struct VhostError;

impl Events {
    /// Where each is in [`interests`](Self::interests).
    pub(super) const CALL: usize = 0;
    pub(super) const ERROR: usize = 1;

    pub(super) fn interests(&self) -> [Interest<'_>; 2] {
        [&self.call, &self.error].map(|event| Interest::read(borrow(event)))
    }

    /// Whether the driver is to be interrupted.
    pub(super) fn take_call(&self) -> bool {
        self.call.read().is_ok()
    }

    /// Whether something has gone wrong.
    pub(super) fn take_error(&self) -> bool {
        self.error.read().is_ok()
    }

    /// Forgets what was told of an earlier session.
    pub(super) fn clear(&self) {
        self.take_call();
        self.take_error();
    }
}

impl VhostPair {
    fn open() -> Result<Self, NetError> {
        let file = OpenOptions::new().read(true).write(true).open("/dev/vhost-net");
        let fd = OwnedFd::from(file.map_err(|error| match error.raw_os_error() {
            // ENODEV: the node is there, the module is not.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NetError::VhostMissing,
            Some(libc::EACCES | libc::EPERM) => NetError::VhostPermission,
            _ => NetError::VhostOpen(error),
        })?);
        let has = sys::features(&fd).map_err(NetError::VhostOpen)?;
        if NEEDED.iter().any(|needed| has & needed == 0) {
            return Err(NetError::VhostOpen(io::ErrorKind::Unsupported.into()));
        }
        Ok(Self { fd: Some(fd), owned: false, rings: Vec::new(), running: false })
    }

    /// Takes over the queues that the driver made ready. They do not run yet.
    pub(super) fn set_up(
        &mut self,
        session: &Session,
        queues: [Option<Queue>; 2],
        events: &Events,
    ) -> io::Result<()> {
        let vhost = self.fd.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // Here and not earlier: the kernel's thread is this one's child, with its CPUs, from Linux 6.4 on.
        if !self.owned {
            sys::set_owner(vhost)?;
            self.owned = true;
        }
        sys::set_features(vhost, session.features() & sys::features(vhost)?)?;
        sys::set_memory(vhost, session.memory())?;
        self.rings.clear();
        for (ring, queue) in [Ring::Receive, Ring::Transmit].into_iter().zip(queues) {
            let Some(queue) = queue else { continue };
            let placement = Placement {
                size: queue.size(),
                descriptors: queue.ring.desc_table(),
                available: queue.ring.avail_ring(),
                used: queue.ring.used_ring(),
            };
            sys::set_ring(vhost, ring, session.memory(), placement)?;
            let kick = session.kick(queue.index()).ok_or(io::ErrorKind::NotFound)?;
            sys::set_events(vhost, ring, kick, borrow(&events.call), borrow(&events.error))?;
            self.rings.push(ring);
        }
        Ok(())
    }

    /// Whether the kernel may touch guest memory.
    pub(super) fn is_running(&self) -> bool {
        self.running
    }

    /// Lets the kernel move frames to and from `tap`; or no more: then it touches guest memory no more when
    /// this returns, whatever it returns.
    pub(super) fn run(&mut self, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
        if self.running == tap.is_some() {
            return Ok(());
        }
        let Some(vhost) = &self.fd else { return Ok(()) };
        self.running = true; // Perhaps the one and not the other.
        let result = self.rings.iter().try_for_each(|ring| sys::set_tap(vhost, *ring, tap));
        if tap.is_some() {
            return result;
        }
        self.running = false;
        if result.is_err() {
            self.fd = None; // This ends it for certain.
        }
        result
    }
}
