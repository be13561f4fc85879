use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap, VolatileSlice,
};

use super::walk::Layout;

/// One request of the driver: the buffers that the device may read, then those that it may write.
///
/// Every buffer was checked: it lies in RAM, does not wrap, and all together are not larger than RAM.
/// What the bytes in them say is still the guest's, and can change at any moment: read each once.
///
/// How a request is cut into buffers is the driver's choice (virtio 1.2, 2.7.4), so the buffers of
/// each kind are addressed as one run of bytes: a header is `read_at(0, ..)`, wherever it lies.
///
/// It goes back to the driver by [`Queue::push`](super::Queue::push).
#[derive(Debug)]
#[must_use = "a chain that is not pushed is lost to the driver"]
pub struct Chain {
    pub(super) queue: u16,
    pub(super) head: u16,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) layout: Layout,
}

/// A part of guest memory that a chain refers to; it lies in RAM and is not empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte.
    pub address: GuestAddress,
    /// Its length in bytes.
    pub len: usize,
}

/// Why bytes of a chain cannot be reached.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AccessError {
    /// The chain is shorter than that.
    #[error("bytes {start}..{end} of a chain that has {len}")]
    OutOfRange {
        /// First byte asked for.
        start: usize,
        /// Byte after the last.
        end: usize,
        /// How many there are.
        len: usize,
    },
    /// Guest memory refused.
    #[error("cannot reach the bytes of a chain")]
    Memory(#[from] GuestMemoryError),
}

impl Chain {
    /// Index of its first descriptor, which names it.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// How many descriptors of the queue's own table it takes, until it is pushed.
    #[must_use]
    pub fn descriptors(&self) -> u16 {
        self.layout.descriptors
    }

    /// How many bytes the device may read.
    #[must_use]
    pub fn readable_len(&self) -> usize {
        self.layout.readable_len
    }

    /// How many bytes the device may write.
    #[must_use]
    pub fn writable_len(&self) -> usize {
        self.layout.writable_len
    }

    /// The buffers that the device may read.
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        self.layout.segments.get(..self.layout.readable).unwrap_or_default()
    }

    /// The buffers that the device may write.
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        self.layout.segments.get(self.layout.readable..).unwrap_or_default()
    }

    /// Fills `data` from the readable bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] if there are not so many.
    pub fn read_at(&self, offset: usize, data: &mut [u8]) -> Result<(), AccessError> {
        let mut rest = data;
        for slice in self.readable_slices(offset..offset.saturating_add(rest.len())) {
            let slice = slice?;
            let (part, behind) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(part);
            rest = behind;
        }
        Ok(())
    }

    /// Puts `data` into the writable bytes at `offset`.
    ///
    /// # Errors
    /// [`AccessError::OutOfRange`] if there are not so many; nothing is written then.
    pub fn write_at(&self, offset: usize, data: &[u8]) -> Result<(), AccessError> {
        let mut rest = data;
        for slice in self.writable_slices(offset..offset.saturating_add(rest.len())) {
            let slice = slice?;
            let (part, behind) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = behind;
        }
        Ok(())
    }

    /// The readable bytes of `range` as they lie in host memory, for `pwritev` and the like. There may
    /// be more slices than segments: a segment can reach over two mappings.
    #[must_use]
    pub fn readable_slices(&self, range: Range<usize>) -> Slices<'_> {
        Slices::new(&self.memory, self.readable(), self.readable_len(), range)
    }

    /// The writable bytes of `range` as they lie in host memory, for `preadv` and the like.
    #[must_use]
    pub fn writable_slices(&self, range: Range<usize>) -> Slices<'_> {
        Slices::new(&self.memory, self.writable(), self.writable_len(), range)
    }
}

/// The slices of host memory behind a range of a [`Chain`]; an error is the last item.
#[derive(Debug)]
pub struct Slices<'chain> {
    memory: &'chain GuestMemoryMmap,
    segments: std::slice::Iter<'chain, Segment>,
    /// Of the segment that is being given out, what is left.
    current: Segment,
    /// Bytes to pass over before the range begins.
    skip: usize,
    /// Bytes of the range still to come.
    left: usize,
    out_of_range: Option<AccessError>,
}

impl<'chain> Slices<'chain> {
    fn new(
        memory: &'chain GuestMemoryMmap,
        segments: &'chain [Segment],
        len: usize,
        range: Range<usize>,
    ) -> Self {
        let Range { start, end } = range;
        let left = end.checked_sub(start).filter(|_| end <= len);
        Self {
            memory,
            segments: segments.iter(),
            current: Segment { address: GuestAddress(0), len: 0 },
            skip: start,
            left: left.unwrap_or(0),
            out_of_range: left.is_none().then_some(AccessError::OutOfRange { start, end, len }),
        }
    }

    /// Makes `current` a segment with bytes of the range in it.
    fn advance(&mut self) -> Option<()> {
        while self.current.len == 0 {
            self.current = *self.segments.next()?;
            let skipped = self.skip.min(self.current.len);
            self.skip = self.skip.saturating_sub(skipped);
            self.current.skip(skipped);
        }
        Some(())
    }
}

impl<'chain> Iterator for Slices<'chain> {
    type Item = Result<VolatileSlice<'chain>, AccessError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(error) = self.out_of_range.take() {
            return Some(Err(error));
        }
        if self.left == 0 {
            return None;
        }
        self.advance()?;
        let wanted = self.current.len.min(self.left);
        match self.memory.get_slices(self.current.address, wanted).next()? {
            Ok(slice) => {
                self.current.skip(slice.len());
                self.left = self.left.saturating_sub(slice.len());
                Some(Ok(slice))
            }
            Err(error) => {
                self.left = 0;
                Some(Err(error.into()))
            }
        }
    }
}

impl Segment {
    fn skip(&mut self, bytes: usize) {
        self.len = self.len.saturating_sub(bytes);
        // It does not wrap: the segment lies in RAM. (`usize` is 64 bits, as everywhere KVM runs here.)
        self.address = GuestAddress(self.address.0.saturating_add(bytes as u64));
    }
}
