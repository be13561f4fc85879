//! What disks hold: each sector's content is calculated from its number and from who wrote it, so that
//! neither a sector in the wrong place nor an old one goes unnoticed.

use super::blk::SECTOR;
use super::dma::Memory;

/// Xorshift64*: as random as a test needs, and the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(mix(seed) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        // The low bits are the weaker ones.
        (self.next() >> 11) % end
    }
}

/// Writes the content of `sector`, as of the write number `generation`.
pub(crate) fn write(memory: Memory, seed: u64, sector: u64, generation: u32) {
    for (offset, word) in words(seed, sector, generation) {
        memory.write(offset, word);
    }
}

pub(crate) fn is(memory: Memory, seed: u64, sector: u64, generation: u32) -> bool {
    words(seed, sector, generation).all(|(offset, word)| memory.read::<u64>(offset) == word)
}

pub(crate) fn is_zero(memory: Memory) -> bool {
    (0..memory.length()).step_by(8).all(|offset| memory.read::<u64>(offset) == 0)
}

/// Offsets and values. The first two words say what it is, for the reader of a dump.
fn words(seed: u64, sector: u64, generation: u32) -> impl Iterator<Item = (u64, u64)> {
    let generation = u64::from(generation);
    let mut random = Random::new(seed ^ sector.rotate_left(32) ^ mix(generation));
    (0..SECTOR).step_by(8).map(move |offset| match offset {
        0 => (offset, sector),
        8 => (offset, generation),
        _ => (offset, random.next()),
    })
}

/// Spreads every bit over all (the finalizer of splitmix64).
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}
