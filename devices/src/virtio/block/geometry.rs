use std::fs::File;

use super::request::SECTOR;
use super::sys::{self, BlockProperty};

/// The block sizes that a driver is told (virtio 1.2, section 5.2.4: `blk_size` and `topology`).
///
/// A block device's own values are passed on. A file has logical blocks of 512 bytes whatever it lies
/// on, because partition tables and file systems inside it depend on that number; its physical block
/// and minimal I/O are the block of the file system that holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of a logical block: a power of two, at least 512.
    pub logical_block: u32,
    /// Bytes of a physical block: the same or a power of two larger.
    pub physical_block: u32,
    /// How far the first logical block is from the start of a physical one, in bytes.
    pub alignment_offset: u32,
    /// The smallest size that suits the disk, in bytes; 0: not known.
    pub minimal_io: u32,
    /// The size that suits it best, in bytes; 0: any.
    pub optimal_io: u32,
}

impl Default for Geometry {
    /// Plain 512-byte blocks.
    fn default() -> Self {
        Self {
            logical_block: 512,
            physical_block: 512,
            alignment_offset: 0,
            minimal_io: 0,
            optimal_io: 0,
        }
    }
}

impl Geometry {
    pub(super) fn of_block_device(device: &File) -> Self {
        let property = |property| sys::block_property(device, property).unwrap_or(0);
        Self {
            logical_block: property(BlockProperty::LogicalBlock),
            physical_block: property(BlockProperty::PhysicalBlock),
            alignment_offset: property(BlockProperty::AlignmentOffset),
            minimal_io: property(BlockProperty::MinimalIo),
            optimal_io: property(BlockProperty::OptimalIo),
        }
        .plausible()
    }

    /// Of a file in a file system with such blocks.
    pub(super) fn of_file(file_system_block: u64) -> Self {
        let block = u32::try_from(file_system_block).unwrap_or(u32::MAX);
        // Some network file systems call a megabyte a block; that says nothing about alignment.
        let block = if block <= 64 << 10 { block } else { 4096 };
        let default = Self::default();
        Self { physical_block: block, minimal_io: block, ..default }.plausible()
    }

    /// Nothing that would not make sense to a driver, whatever a host's driver said.
    fn plausible(self) -> Self {
        let default = Self::default();
        let block = |size: u32| size.is_power_of_two() && u64::from(size) >= SECTOR;
        let logical_block = if block(self.logical_block) { self.logical_block } else { 512 };
        let physical = block(self.physical_block) && self.physical_block >= logical_block;
        Self {
            logical_block,
            physical_block: if physical { self.physical_block } else { logical_block },
            alignment_offset: if physical {
                self.alignment_offset
            } else {
                default.alignment_offset
            },
            ..self
        }
    }

    /// How many logical blocks are in a physical one, as a power of two.
    pub(super) fn physical_block_exponent(&self) -> u8 {
        let exponent = self
            .physical_block
            .trailing_zeros()
            .saturating_sub(self.logical_block.trailing_zeros());
        u8::try_from(exponent).unwrap_or(0)
    }

    /// So many bytes in whole logical blocks.
    pub(super) fn in_blocks(&self, bytes: u32) -> u32 {
        bytes.checked_div(self.logical_block).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_keeps_logical_blocks_of_512() {
        let ext4 = Geometry::of_file(4096);
        assert_eq!((ext4.logical_block, ext4.physical_block, ext4.minimal_io), (512, 4096, 4096));
        assert_eq!((ext4.physical_block_exponent(), ext4.in_blocks(ext4.minimal_io)), (3, 8));
        assert_eq!(Geometry::of_file(1 << 20).physical_block, 4096);
        assert_eq!(Geometry::of_file(1000).physical_block, 512);
        assert_eq!(Geometry::of_file(u64::MAX).physical_block, 4096);
    }

    #[test]
    fn nonsense_of_a_block_device_becomes_plain_blocks() {
        let odd = Geometry {
            logical_block: 0,
            physical_block: 256,
            alignment_offset: 7,
            minimal_io: 0,
            optimal_io: 0,
        };
        assert_eq!(odd.plausible(), Geometry::default());
        let native = Geometry { logical_block: 4096, physical_block: 4096, ..Geometry::default() };
        assert_eq!(native.plausible(), native);
        assert_eq!(native.physical_block_exponent(), 0);
        let inverted = Geometry { physical_block: 512, ..native };
        assert_eq!(inverted.plausible(), native);
    }
}
