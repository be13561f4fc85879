use std::io;
use std::os::fd::BorrowedFd;

use thiserror::Error;

use super::super::{AccessError, Chain, Slices, Waker};
use super::header::{FrameHeader, HEADER_LEN};
use super::offloads::Offloads;
pub use super::room::Room;

/// The longest frame that a card sends or receives: an IP packet of 64 KiB behind an Ethernet header
/// with a VLAN tag.
pub const MAX_FRAME_LEN: usize = 65_536 + 18;
/// The shortest: an Ethernet header.
pub const MIN_FRAME_LEN: usize = 14;

/// What a network card is plugged into: frames from the guest go in, frames for the guest come out.
///
/// One value serves one queue pair of a card. No method may block, or the guest's other queues stand
/// still and a reset waits; "not now" is [`BackendError::WouldBlock`]. All are called by the card's own
/// thread, while the guest's driver runs. A value lives as long as the card: resets by the driver do not
/// end it.
///
/// After [`BackendError::WouldBlock`], the card calls again when [`fd`](Self::fd) is ready, or when the
/// [`Waker`] of [`start`](Self::start) is used; a backend needs one of the two.
///
/// # A network of your own
/// This one keeps the last frame that the guest sent, and sends it back when told to.
///
/// ```
/// use std::sync::{Arc, Mutex};
/// use sparkler_devices::virtio::Waker;
/// use sparkler_devices::virtio::net::{BackendError, Frame, FrameHeader, Net, NetBackend, Room};
///
/// #[derive(Default)]
/// struct Echo {
///     sent: Option<Vec<u8>>,
/// }
///
/// impl NetBackend for Echo {
///     fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
///         self.sent = Some(frame.to_vec()?);
///         Ok(())
///     }
///     fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
///         let frame = self.sent.take().ok_or(BackendError::WouldBlock)?;
///         room.put(FrameHeader::default(), &frame)
///     }
/// }
///
/// let net = Net::backend(Echo::default());
/// ```
pub trait NetBackend: Send + 'static {
    /// What the guest may leave undone in frames that it sends. Asked once, before the card is used.
    fn send_offloads(&self) -> Offloads {
        Offloads::NONE
    }

    /// What the backend may leave undone in frames that the guest receives. Asked once, before the card
    /// is used; the driver chooses from it ([`set_receive_offloads`](Self::set_receive_offloads)).
    fn receive_offloads(&self) -> Offloads {
        Offloads::NONE
    }

    /// The guest's driver is there, for the first time or again after a reset. What arrived before may
    /// be stale, which harms no network. `waker` makes the card's thread call [`receive`](Self::receive)
    /// and repeat a [`send`](Self::send) that would have blocked.
    ///
    /// # Errors
    /// Any error means that the device needs a reset.
    fn start(&mut self, waker: Waker) -> io::Result<()> {
        drop(waker);
        Ok(())
    }

    /// The driver says what may be left undone in frames that it receives: after
    /// [`start`](Self::start), and again whenever it changes its mind.
    ///
    /// # Errors
    /// Any error means that the driver is told so, or that the device needs a reset.
    fn set_receive_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let _ = offloads;
        Ok(())
    }

    /// Whether the driver uses this queue pair. One that is not in use gets no calls of
    /// [`send`](Self::send) and [`receive`](Self::receive), and its frames should come from another
    /// one. Called after [`start`](Self::start), and when the driver changes the number of its queues.
    ///
    /// # Errors
    /// Any error means that the driver is told so, or that the device needs a reset.
    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let _ = active;
        Ok(())
    }

    /// Takes a frame of the guest. It may keep it, until [`flush`](Self::flush) is called.
    ///
    /// # Errors
    /// [`BackendError::WouldBlock`], and the same frame comes again later; [`BackendError::Refused`],
    /// and it is dropped and counted; [`BackendError::Gone`].
    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError>;

    /// Puts the next frame for the guest into `room`.
    ///
    /// # Errors
    /// [`BackendError::WouldBlock`] if there is none now; [`BackendError::Refused`] if the next one is
    /// no frame, which is counted; [`BackendError::Gone`].
    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError>;

    /// No more frames come for now: those that were kept must go out. Called again after
    /// [`BackendError::WouldBlock`].
    ///
    /// # Errors
    /// As [`send`](Self::send).
    fn flush(&mut self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Whether it is still there, for when somebody else than the card moves the frames.
    ///
    /// # Errors
    /// Any error means that it is gone.
    fn check(&self) -> io::Result<()> {
        Ok(())
    }

    /// What is readable when [`receive`](Self::receive) has a frame, and writable when
    /// [`send`](Self::send) and [`flush`](Self::flush) would not block.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Why a backend did not take or give a frame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// Not now.
    #[error("it would block")]
    WouldBlock,
    /// This frame cannot go its way; the next one may.
    #[error("the frame cannot be carried")]
    Refused,
    /// The backend is of no use any more: the guest sees its cable unplugged.
    #[error("the backend is gone")]
    Gone(#[source] io::Error),
}

impl From<AccessError> for BackendError {
    fn from(_: AccessError) -> Self {
        Self::Refused
    }
}

/// A frame of the guest, from its Ethernet header on; without the frame check sequence.
///
/// It lies in guest memory, and the guest may change it at any moment: what was checked must have been
/// copied before.
#[derive(Debug)]
pub struct Frame<'a> {
    chain: &'a Chain,
    header: FrameHeader,
}

impl<'a> Frame<'a> {
    /// The frame in `chain`, behind the header. That it has a valid length is known.
    pub(super) fn new(chain: &'a Chain, header: FrameHeader) -> Self {
        Self { chain, header }
    }

    /// What is left undone in it; at most what [`NetBackend::send_offloads`] says.
    #[must_use]
    pub fn header(&self) -> FrameHeader {
        self.header
    }

    /// Its length in bytes, [`MIN_FRAME_LEN`] to [`MAX_FRAME_LEN`].
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.chain.readable_len().saturating_sub(HEADER_LEN)
    }

    /// Fills `data` from its bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] if there are not so many.
    pub fn read_at(&self, offset: usize, data: &mut [u8]) -> Result<(), AccessError> {
        self.chain.read_at(offset.saturating_add(HEADER_LEN), data)
    }

    /// A copy of its bytes.
    ///
    /// # Errors
    /// [`AccessError`] if guest memory refuses.
    pub fn to_vec(&self) -> Result<Vec<u8>, AccessError> {
        let mut bytes = vec![0; self.len()];
        self.read_at(0, &mut bytes)?;
        Ok(bytes)
    }

    /// Its bytes as they lie in host memory, for `writev` and the like.
    #[must_use]
    pub fn slices(&self) -> Slices<'a> {
        self.chain.readable_slices(HEADER_LEN..self.chain.readable_len())
    }
}
