use std::sync::Arc;

use super::super::ConfigSpace;
use super::geometry::Geometry;
use super::request::{MAX_RANGE_SECTORS, MAX_RANGES, SECTOR};
use super::state::State;

/// Bytes of `struct virtio_blk_config` up to and with the fields for write-zeroes.
const LEN: usize = 60;
/// Where its `writeback` is, the one field that a driver may write.
const WRITEBACK: usize = 32;

/// The configuration space of a disk (virtio 1.2, section 5.2.4).
#[derive(Debug)]
pub(super) struct Config {
    pub(super) state: Arc<State>,
    pub(super) geometry: Geometry,
    pub(super) max_segments: u32,
    pub(super) queues: u16,
}

impl Config {
    fn bytes(&self) -> [u8; LEN] {
        let geometry = &self.geometry;
        let alignment = geometry.in_blocks(geometry.alignment_offset);
        let minimal_io = geometry.in_blocks(geometry.minimal_io);
        let sectors = u32::try_from(SECTOR).unwrap_or(512);
        let granule = geometry.physical_block.checked_div(sectors).unwrap_or(1);
        let may_unmap = 1;

        let mut bytes = [0; LEN];
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(field) = bytes.get_mut(offset..offset.saturating_add(value.len())) {
                field.copy_from_slice(value);
            }
        };
        put(0, &self.state.capacity().to_le_bytes());
        put(12, &self.max_segments.to_le_bytes());
        put(20, &geometry.logical_block.to_le_bytes());
        put(24, &[geometry.physical_block_exponent()]);
        put(25, &[u8::try_from(alignment).unwrap_or(0)]);
        put(26, &u16::try_from(minimal_io).unwrap_or(0).to_le_bytes());
        put(28, &geometry.in_blocks(geometry.optimal_io).to_le_bytes());
        put(WRITEBACK, &[u8::from(self.state.writeback())]);
        put(34, &self.queues.to_le_bytes());
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &granule.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[may_unmap]);
        bytes
    }
}

impl ConfigSpace for Config {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        let field = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        for (to, from) in data.iter_mut().zip(field.unwrap_or_default()) {
            *to = *from;
        }
    }

    /// Only `writeback` can be written, by itself. It has an effect if `CONFIG_WCE` was negotiated.
    fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(WRITEBACK), &[writeback @ (0 | 1)]) = (usize::try_from(offset), data) {
            self.state.set_writeback(writeback == 1);
        }
    }

    fn generation(&self) -> u32 {
        self.state.generation()
    }
}

#[cfg(test)]
mod tests {
    use super::super::error::DiskName;
    use super::*;

    fn config(size: u64) -> Config {
        let geometry = Geometry {
            logical_block: 512,
            physical_block: 4096,
            alignment_offset: 1024,
            minimal_io: 8192,
            optimal_io: 65_536,
        };
        let state = Arc::new(State::new(DiskName::own(), size, None));
        Config { state, geometry, max_segments: 254, queues: 3 }
    }

    fn field<const N: usize>(config: &Config, offset: u64) -> [u8; N] {
        let mut field = [0; N];
        config.read(offset, &mut field);
        field
    }

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let config = config(1 << 40);
        assert_eq!(field(&config, 0), (1u64 << 31).to_le_bytes(), "capacity");
        assert_eq!(field(&config, 8), [0; 4], "size_max");
        assert_eq!(field(&config, 12), 254u32.to_le_bytes(), "seg_max");
        assert_eq!(field(&config, 16), [0; 4], "geometry");
        assert_eq!(field(&config, 20), 512u32.to_le_bytes(), "blk_size");
        assert_eq!(field(&config, 24), [3], "physical_block_exp");
        assert_eq!(field(&config, 25), [2], "alignment_offset");
        assert_eq!(field(&config, 26), 16u16.to_le_bytes(), "min_io_size");
        assert_eq!(field(&config, 28), 128u32.to_le_bytes(), "opt_io_size");
        assert_eq!(field(&config, 32), [1, 0], "writeback");
        assert_eq!(field(&config, 34), 3u16.to_le_bytes(), "num_queues");
        assert_eq!(field(&config, 36), (1u32 << 21).to_le_bytes(), "max_discard_sectors");
        assert_eq!(field(&config, 40), 16u32.to_le_bytes(), "max_discard_seg");
        assert_eq!(field(&config, 44), 8u32.to_le_bytes(), "discard_sector_alignment");
        assert_eq!(field(&config, 48), (1u32 << 21).to_le_bytes(), "max_write_zeroes_sectors");
        assert_eq!(field(&config, 52), 16u32.to_le_bytes(), "max_write_zeroes_seg");
        assert_eq!(field(&config, 56), [1, 0, 0, 0], "write_zeroes_may_unmap");
    }

    #[test]
    fn reads_of_every_offset_and_width_stay_inside() {
        let config = config(u64::MAX);
        let whole: [u8; 64] = field(&config, 0);
        for offset in 0..80u64 {
            for width in 0..10 {
                let mut data = vec![0; width];
                config.read(offset, &mut data);
                for (at, byte) in (usize::try_from(offset).unwrap()..).zip(data) {
                    assert_eq!(byte, whole.get(at).copied().unwrap_or(0));
                }
            }
        }
        config.read(u64::MAX, &mut [0; 8]);
    }

    #[test]
    fn only_writeback_can_be_written_and_only_by_itself() {
        let config = config(4096);
        let before: [u8; 60] = field(&config, 0);
        for offset in 0..80u64 {
            for width in 0..10 {
                if (offset, width) != (32, 1) {
                    config.write(offset, &vec![0; width]);
                }
            }
        }
        config.write(u64::MAX, &[0]);
        config.write(32, &[2]);
        assert_eq!(field(&config, 0), before);
        config.write(32, &[0]);
        assert_eq!(field(&config, 32), [0]);
        config.write(32, &[1]);
        assert_eq!(field(&config, 0), before);
    }

    #[test]
    fn a_new_size_is_seen_with_a_new_generation() {
        let config = config(513);
        assert_eq!((field(&config, 0), config.generation()), (2u64.to_le_bytes(), 0));
        super::super::state::DiskHandle(Arc::clone(&config.state)).set_size(1 << 20);
        assert_eq!((field(&config, 0), config.generation()), (2048u64.to_le_bytes(), 1));
        assert!(config.state.take_changed());
        assert!(!config.state.take_changed());
    }
}
