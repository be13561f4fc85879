//! The walk over a descriptor chain: each rule is checked here, once.

use thiserror::Error;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
};

use super::chain::Segment;

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
    pub(super) readable: usize,
    pub(super) readable_len: usize,
    pub(super) writable_len: usize,
    /// How many descriptors of the queue's own table it takes.
    pub(super) descriptors: u16,
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
            if !in_indirect {
                self.descriptors = self.descriptors.saturating_add(1);
            }
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
        if !memory.check_range(address, len) {
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
