//! The memory map as the guest is told it, in the manner of a PC's BIOS call `e820`.

use std::iter;
use std::ops::Range;

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

use crate::error::LoadError;
use crate::layout::{HIGH_MEMORY, MP_TABLE};

/// The most entries that `boot_params` holds (`E820_MAX_ENTRIES_ZEROPAGE`).
pub(crate) const LIMIT: usize = 128;

/// What an entry's memory is for; the same numbers in `boot_params` and in PVH's memory map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Kind {
    Ram = 1,
    Reserved = 2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) start: u64,
    pub(crate) size: u64,
    pub(crate) kind: Kind,
}

/// RAM is what `memory` has, without the range of the MP and ACPI tables, which is reserved, as are the
/// ranges of `reserved`.
pub(crate) fn map<M: GuestMemoryBackend>(
    memory: &M,
    reserved: &[Range<u64>],
) -> Result<Vec<Entry>, LoadError> {
    let mut entries: Vec<_> = iter::once(&(MP_TABLE.0..HIGH_MEMORY.0))
        .chain(reserved)
        .map(|&Range { start, end }| Entry {
            start,
            size: end.saturating_sub(start),
            kind: Kind::Reserved,
        })
        .collect();
    for (start, end) in pieces(memory) {
        for (start, end) in [(start, end.min(MP_TABLE.0)), (start.max(HIGH_MEMORY.0), end)] {
            if start < end {
                entries.push(Entry { start, size: end - start, kind: Kind::Ram });
            }
        }
    }
    if entries.len() > LIMIT {
        return Err(LoadError::TooManyRegions { regions: entries.len(), limit: LIMIT });
    }
    entries.sort_unstable_by_key(|entry| entry.start);
    Ok(entries)
}

/// The end of the RAM that reaches without a gap from 1 MiB upwards; 1 MiB if there is none.
pub(crate) fn end_of_low_memory<M: GuestMemoryBackend>(memory: &M) -> u64 {
    let mut pieces = pieces(memory).into_iter();
    let low = pieces.find(|&(start, end)| start <= HIGH_MEMORY.0 && end > HIGH_MEMORY.0);
    low.map_or(HIGH_MEMORY.0, |(_, end)| end)
}

/// Guest memory as ranges `start..end` in ascending order, neighbours joined.
fn pieces<M: GuestMemoryBackend>(memory: &M) -> Vec<(u64, u64)> {
    let mut regions: Vec<_> = memory
        .iter()
        .map(|region| (region.start_addr().0, region.last_addr().0.saturating_add(1)))
        .collect();
    regions.sort_unstable();
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    for (start, end) in regions {
        match pieces.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => pieces.push((start, end)),
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    fn memory(ranges: &[(u64, usize)]) -> GuestMemoryMmap {
        let ranges: Vec<_> =
            ranges.iter().map(|&(start, len)| (GuestAddress(start), len)).collect();
        GuestMemoryMmap::from_ranges(&ranges).unwrap()
    }

    fn ram(start: u64, end: u64) -> Entry {
        Entry { start, size: end - start, kind: Kind::Ram }
    }

    const TABLES: Entry = Entry { start: 0x9_fc00, size: 0x6_0400, kind: Kind::Reserved };

    #[test]
    fn below_the_hole() {
        let memory = memory(&[(0, 4 << 20)]);
        let expected = [ram(0, 0x9_fc00), TABLES, ram(0x10_0000, 4 << 20)];
        assert_eq!(map(&memory, &[]).unwrap(), expected);
        assert_eq!(end_of_low_memory(&memory), 4 << 20);
    }

    #[test]
    fn around_the_hole_with_joined_neighbours() {
        let memory = memory(&[(0, 1 << 30), (1 << 30, 2 << 30), (4 << 30, 1 << 20)]);
        let expected = [
            ram(0, 0x9_fc00),
            TABLES,
            ram(0x10_0000, 3 << 30),
            ram(4 << 30, (4 << 30) + (1 << 20)),
        ];
        assert_eq!(map(&memory, &[]).unwrap(), expected);
        assert_eq!(end_of_low_memory(&memory), 3 << 30);
    }

    #[test]
    fn reserved_ranges_are_told_in_their_place() {
        let memory = memory(&[(0, 4 << 20), (8 << 30, 1 << 20)]);
        let shared = 4 << 30..(4 << 30) + 4096;
        let reserved = Entry { start: shared.start, size: 4096, kind: Kind::Reserved };
        let high = ram(8 << 30, (8 << 30) + (1 << 20));
        let expected = [ram(0, 0x9_fc00), TABLES, ram(0x10_0000, 4 << 20), reserved, high];
        assert_eq!(map(&memory, &[shared]).unwrap(), expected);
    }

    #[test]
    fn tiny_and_odd_memories() {
        assert_eq!(map(&memory(&[(0, 0x1000)]), &[]).unwrap(), [ram(0, 0x1000), TABLES]);
        assert_eq!(end_of_low_memory(&memory(&[(0, 0x1000)])), 1 << 20);
        assert_eq!(end_of_low_memory(&memory(&[(4 << 30, 0x1000)])), 1 << 20);
        let scattered: Vec<_> = (0..140).map(|i| ((1 << 20) + i * 0x2000, 0x1000)).collect();
        let error = map(&memory(&scattered), &[]).unwrap_err();
        assert!(matches!(error, LoadError::TooManyRegions { limit: 128, .. }), "{error}");
    }
}
