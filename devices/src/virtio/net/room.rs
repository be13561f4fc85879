use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use super::super::{AccessError, Chain};
use super::backend::{BackendError, MAX_FRAME_LEN, MIN_FRAME_LEN};
use super::header::{Checksum, FrameHeader, HEADER_LEN};
use super::offloads::Offloads;
use super::{run, sys};

/// Bytes for a header and the longest frame.
pub(super) const SPILL_LEN: usize = HEADER_LEN + MAX_FRAME_LEN;

/// Where a [`NetBackend`](super::NetBackend) puts a frame for the guest.
///
/// There is always room for the longest frame: first in buffers of the guest's driver, then in memory
/// of the card's own, from where it gets to further buffers as soon as the driver offers them.
#[derive(Debug)]
pub struct Room<'a> {
    chains: &'a VecDeque<Chain>,
    /// The bytes of the chains that are used for this frame.
    direct: usize,
    spill: &'a mut [u8],
    offloads: Offloads,
    /// Bytes of header and frame that were put.
    filled: usize,
}

impl<'a> Room<'a> {
    /// The first `count` of `chains`, then `spill`, which is [`SPILL_LEN`] bytes long.
    pub(super) fn new(
        chains: &'a VecDeque<Chain>,
        count: usize,
        spill: &'a mut [u8],
        offloads: Offloads,
    ) -> Self {
        let lens = chains.iter().take(count).map(Chain::writable_len);
        let direct = lens.fold(0, usize::saturating_add);
        Self { chains, direct, spill, offloads, filled: 0 }
    }

    /// Puts a frame there, from its Ethernet header on; once.
    ///
    /// # Errors
    /// [`BackendError::Refused`] if it is shorter than [`MIN_FRAME_LEN`] or longer than
    /// [`MAX_FRAME_LEN`], or if more is left undone in it than the driver allowed
    /// ([`NetBackend::set_receive_offloads`](super::NetBackend::set_receive_offloads)).
    pub fn put(&mut self, header: FrameHeader, frame: &[u8]) -> Result<(), BackendError> {
        let len = frame.len();
        if !(MIN_FRAME_LEN..=MAX_FRAME_LEN).contains(&len) || self.filled > 0 {
            return Err(BackendError::Refused);
        }
        let mut bytes = header.to_bytes();
        if header != FrameHeader::default() {
            let header = self.allowed(header, len).ok_or(BackendError::Refused)?;
            bytes = header.to_bytes();
        }
        self.write_at(0, &bytes)?;
        self.write_at(HEADER_LEN, frame)?;
        self.filled = HEADER_LEN.saturating_add(len);
        Ok(())
    }

    /// Reads a header and a frame from `fd` at once, as a tap gives them.
    pub(super) fn read_from(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
        self.filled = sys::readv(fd, run::slices(self.chains, 0..self.direct), self.spill)?;
        Ok(())
    }

    /// How many bytes of header and frame were put; how many of them into the chains at most.
    pub(super) fn filled(&self) -> (usize, usize) {
        (self.filled, self.direct)
    }

    /// `header`, without what is said only as a help, if the driver allowed it.
    fn allowed(&self, header: FrameHeader, len: usize) -> Option<FrameHeader> {
        match header.checksum {
            Checksum::Valid if self.offloads.checksum => Some(header),
            Checksum::Valid => Some(FrameHeader { checksum: Checksum::Complete, ..header }),
            _ => FrameHeader::from_driver(header.to_bytes(), len, self.offloads),
        }
    }

    fn write_at(&mut self, offset: usize, data: &[u8]) -> Result<(), AccessError> {
        let direct = self.direct.saturating_sub(offset).min(data.len());
        let (here, behind) = data.split_at(direct);
        run::write_at(self.chains, offset, here)?;
        let from = offset.saturating_add(direct).saturating_sub(self.direct);
        let spill = self.spill.get_mut(from..).unwrap_or_default();
        if let Some(to) = spill.get_mut(..behind.len()) {
            to.copy_from_slice(behind);
        }
        Ok(())
    }
}
