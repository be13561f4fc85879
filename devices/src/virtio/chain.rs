//! Descriptor chains: walked and checked once, then only bytes.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    VolatileSlice,
};

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

/// How a driver broke the rules of descriptor chains (virtio 1.2, 2.7.5).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The chain leads to a descriptor that the table does not have.
    #[error("descriptor {index} of a table of {count}")]
    NoSuchDescriptor {
        /// Its index.
        index: u16,
        /// How many there are.
        count: u16,
    },
    /// More descriptors than the queue has: they loop, or a table is too long.
    #[error("more than {limit} descriptors, the size of the queue")]
    TooManyDescriptors {
        /// The most there may be.
        limit: u16,
    },
    /// An indirect descriptor though the driver has not accepted `RING_INDIRECT_DESC`.
    #[error("an indirect descriptor, which was not negotiated")]
    IndirectNotNegotiated,
    /// An indirect descriptor inside an indirect table.
    #[error("an indirect descriptor in an indirect table")]
    NestedIndirect,
    /// An indirect descriptor with a successor.
    #[error("an indirect descriptor with a successor")]
    IndirectWithNext,
    /// The length of an indirect table is zero or not a multiple of 16.
    #[error("an indirect table of {len} bytes, no multiple of 16")]
    IndirectLength {
        /// Its length in bytes.
        len: u32,
    },
    /// A buffer to read after one to write.
    #[error("a readable buffer after a writable one")]
    ReadableAfterWritable,
    /// A buffer that is not in RAM, or only in part, or wraps around.
    #[error("a buffer of {len} bytes at {address:#x} is not in RAM")]
    OutsideRam {
        /// Its first byte.
        address: u64,
        /// Its length in bytes.
        len: u32,
    },
    /// All buffers together are larger than RAM (or 4 GiB), so some must overlap.
    #[error("buffers of more than {limit} bytes in one chain")]
    TooManyBytes {
        /// The most there may be.
        limit: usize,
    },
    /// A descriptor table that cannot be read.
    #[error("cannot read descriptor {index}")]
    Table {
        /// Index of the descriptor.
        index: u16,
        /// What guest memory said.
        source: GuestMemoryError,
    },
}

/// What a walk is bounded by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Most descriptors in a chain, those of an indirect table among them.
    pub(super) descriptors: u16,
    /// Most bytes in a chain.
    pub(super) bytes: usize,
    /// Whether `RING_INDIRECT_DESC` was negotiated.
    pub(super) indirect: bool,
}

/// A descriptor table, of the queue or an indirect one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Table {
    pub(super) address: GuestAddress,
    pub(super) count: u16,
}

impl Table {
    /// Reads a descriptor, once: another vCPU may be changing it.
    fn read(&self, memory: &GuestMemoryMmap, index: u16) -> Result<Descriptor, ChainError> {
        if index >= self.count {
            return Err(ChainError::NoSuchDescriptor { index, count: self.count });
        }
        self.address
            .checked_add(u64::from(index).saturating_mul(size_of::<Descriptor>() as u64))
            .ok_or(GuestMemoryError::GuestAddressOverflow)
            .and_then(|address| memory.read_obj(address))
            .map_err(|source| ChainError::Table { index, source })
    }
}

/// The buffers of a chain.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub(super) segments: Vec<Segment>,
    /// How many of them are readable.
    readable: usize,
    pub(super) readable_len: usize,
    pub(super) writable_len: usize,
}

impl Layout {
    /// An empty one, in the allocation of `segments`.
    pub(super) fn reuse(mut segments: Vec<Segment>) -> Self {
        segments.clear();
        Self { segments, ..Self::default() }
    }

    /// Walks the chain that begins at `head` of `table`. It ends after at most
    /// `limits.descriptors` descriptors, whatever the guest wrote.
    pub(super) fn walk(
        &mut self,
        memory: &GuestMemoryMmap,
        mut table: Table,
        head: u16,
        limits: Limits,
    ) -> Result<(), ChainError> {
        let mut in_indirect = false;
        let mut index = head;
        let mut count = 0u16;
        loop {
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                if in_indirect {
                    return Err(ChainError::NestedIndirect);
                }
                table = indirect_table(descriptor, limits)?;
                in_indirect = true;
                index = 0;
                continue;
            }
            count = count.saturating_add(1);
            if count > limits.descriptors {
                return Err(ChainError::TooManyDescriptors { limit: limits.descriptors });
            }
            self.add(memory, descriptor, limits)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    fn add(
        &mut self,
        memory: &GuestMemoryMmap,
        descriptor: Descriptor,
        limits: Limits,
    ) -> Result<(), ChainError> {
        let writable = descriptor.is_write_only();
        if !writable && self.readable < self.segments.len() {
            return Err(ChainError::ReadableAfterWritable);
        }
        let Ok(len @ 1..) = usize::try_from(descriptor.len()) else {
            return Ok(()); // No bytes: nothing to check, nothing to keep.
        };
        let address = descriptor.addr();
        let last = address.checked_add(u64::from(descriptor.len()).saturating_sub(1));
        if last.is_none() || !memory.check_range(address, len) {
            return Err(ChainError::OutsideRam { address: address.0, len: descriptor.len() });
        }
        let total = self.readable_len.saturating_add(self.writable_len).saturating_add(len);
        if total > limits.bytes {
            return Err(ChainError::TooManyBytes { limit: limits.bytes });
        }
        self.segments.push(Segment { address, len });
        if writable {
            self.writable_len = self.writable_len.saturating_add(len);
        } else {
            self.readable = self.segments.len();
            self.readable_len = self.readable_len.saturating_add(len);
        }
        Ok(())
    }
}

fn indirect_table(descriptor: Descriptor, limits: Limits) -> Result<Table, ChainError> {
    const ENTRY: u32 = 16; // 2.7.5, the size of a descriptor
    if !limits.indirect {
        return Err(ChainError::IndirectNotNegotiated);
    }
    if descriptor.has_next() {
        return Err(ChainError::IndirectWithNext);
    }
    let len = descriptor.len();
    if len == 0 || !len.is_multiple_of(ENTRY) {
        return Err(ChainError::IndirectLength { len });
    }
    match u16::try_from(len / ENTRY) {
        Ok(count) if count <= limits.descriptors => Ok(Table { address: descriptor.addr(), count }),
        _ => Err(ChainError::TooManyDescriptors { limit: limits.descriptors }),
    }
}
