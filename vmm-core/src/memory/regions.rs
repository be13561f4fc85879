use std::fmt;
use std::ops::Range;

use sparkler_loader::layout;

use super::{MemoryError, MemorySize};

/// Below the hole and above it is RAM; in it are interrupt controllers and device windows.
const HOLE_START: u64 = layout::HOLE_START.0;
const HOLE_END: u64 = layout::HOLE_END.0;
const PAGE: u64 = 4096;

/// What a range of guest-physical addresses is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegionKind {
    /// The machine's memory.
    Memory,
    /// Memory at an address of the caller's choice.
    Extra,
    /// A read-only shared region.
    Shared,
}

impl fmt::Display for RegionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Memory => "the memory",
            Self::Extra => "an extra memory region",
            Self::Shared => "a shared region",
        })
    }
}

/// Ranges of guest-physical addresses that do not overlap, in ascending order.
#[derive(Debug)]
pub(crate) struct Ranges(Vec<(Range<u64>, RegionKind)>);

impl Ranges {
    /// The most extra and shared regions: the memory map that a kernel takes has 128 entries.
    pub(crate) const MOST_ADDED: usize = 64;

    /// `size` bytes of RAM: one range below the hole and, where needed, one above it.
    pub(crate) fn new(size: MemorySize) -> Self {
        let size = size.as_bytes();
        let low = 0..size.min(HOLE_START);
        let high = HOLE_END..HOLE_END.saturating_add(size.saturating_sub(HOLE_START));
        let ranges = [low, high].into_iter().filter(|range| !range.is_empty());
        Self(ranges.map(|range| (range, RegionKind::Memory)).collect())
    }

    /// Adds `size` bytes at `start`.
    pub(crate) fn add(
        &mut self,
        kind: RegionKind,
        start: u64,
        size: MemorySize,
    ) -> Result<(), MemoryError> {
        /// What the page tables of x86-64 can address; the processor may do with less.
        const LIMIT: u64 = 1 << 52;
        if size.as_bytes() == 0 || !(start | size.as_bytes()).is_multiple_of(PAGE) {
            let page = MemorySize::bytes(PAGE);
            return Err(MemoryError::Alignment { kind, start, size, page });
        }
        let end = start.checked_add(size.as_bytes()).filter(|&end| end <= LIMIT);
        let Some(end) = end.filter(|_| start >= HOLE_END) else {
            return Err(MemoryError::Place { kind, start, size, limit: LIMIT });
        };
        let overlap = self.0.iter().find(|(range, _)| range.start < end && start < range.end);
        if let Some((range, other)) = overlap {
            let (other, other_start) = (*other, range.start);
            return Err(MemoryError::Overlap { kind, start, other, other_start });
        }
        let place = self.0.partition_point(|(range, _)| range.start < start);
        self.0.insert(place, (start..end, kind));
        let added = self.0.iter().filter(|(_, kind)| *kind != RegionKind::Memory).count();
        if added > Self::MOST_ADDED {
            return Err(MemoryError::TooManyRegions { requested: added, limit: Self::MOST_ADDED });
        }
        Ok(())
    }

    /// All ranges.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter().map(|(range, _)| range)
    }

    /// The ranges that are RAM.
    pub(crate) fn ram(&self) -> impl Iterator<Item = (&Range<u64>, RegionKind)> {
        self.0.iter().filter(|(_, kind)| *kind != RegionKind::Shared).map(|(r, kind)| (r, *kind))
    }

    /// The ranges that no kernel may use as it likes.
    pub(crate) fn reserved(&self) -> Vec<Range<u64>> {
        let shared = self.0.iter().filter(|(_, kind)| *kind == RegionKind::Shared);
        shared.map(|(range, _)| range.clone()).collect()
    }

    /// The end of the machine's own memory.
    pub(crate) fn end_of_memory(&self) -> u64 {
        let own = self.0.iter().filter(|(_, kind)| *kind == RegionKind::Memory);
        own.map(|(range, _)| range.end).max().unwrap_or(0)
    }

    /// That the added ranges lie below `limit`, where the processor's addresses end.
    pub(crate) fn check_added_below(&self, limit: u64) -> Result<(), MemoryError> {
        let added = |(_, kind): &&(Range<u64>, RegionKind)| *kind != RegionKind::Memory;
        let beyond = self.0.iter().filter(added).find(|(range, _)| range.end > limit);
        beyond.map_or(Ok(()), |(range, kind)| {
            let size = MemorySize::bytes(length(range));
            Err(MemoryError::Place { kind: *kind, start: range.start, size, limit })
        })
    }
}

/// The number of addresses in a range.
pub(super) fn length(range: &Range<u64>) -> u64 {
    range.end.saturating_sub(range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    /// Start and end of what is RAM.
    fn ram(ranges: &Ranges) -> Vec<(u64, u64)> {
        ranges.ram().map(|(range, _)| (range.start, range.end)).collect()
    }

    #[test]
    fn memory_goes_around_the_hole() {
        let of = |size| ram(&Ranges::new(size));
        assert_eq!(of(MemorySize::mib(4)), [(0, 4 << 20)]);
        assert_eq!(of(MemorySize::gib(3)), [(0, 3 * GIB)]);
        let more = MemorySize::bytes(3 * GIB + 4096);
        assert_eq!(of(more), [(0, 3 * GIB), (4 * GIB, 4 * GIB + 4096)]);
        assert_eq!(of(MemorySize::gib(512)), [(0, 3 * GIB), (4 * GIB, 513 * GIB)]);
        assert_eq!(Ranges::new(more).end_of_memory(), 4 * GIB + 4096);
        assert_eq!(Ranges::new(MemorySize::gib(3)).end_of_memory(), 3 * GIB);
    }

    #[test]
    fn added_regions_are_kept_in_order_and_apart() {
        let mut ranges = Ranges::new(MemorySize::gib(4));
        ranges.add(RegionKind::Extra, 8 * GIB, MemorySize::gib(1)).unwrap();
        ranges.add(RegionKind::Shared, 6 * GIB, MemorySize::kib(4)).unwrap();
        ranges.add(RegionKind::Extra, 5 * GIB, MemorySize::gib(1)).unwrap();
        let expected =
            [(0, 3), (4, 5), (5, 6), (8, 9)].map(|(start, end)| (start * GIB, end * GIB));
        assert_eq!(ram(&ranges), expected);
        let reserved = ranges.reserved();
        assert_eq!(reserved.len(), 1);
        assert_eq!(reserved.first(), Some(&(6 * GIB..6 * GIB + 4096)));
        assert_eq!(ranges.end_of_memory(), 5 * GIB);
        ranges.check_added_below(9 * GIB).unwrap();
        let beyond = ranges.check_added_below(9 * GIB - 1).unwrap_err();
        assert!(matches!(beyond, MemoryError::Place { kind: RegionKind::Extra, .. }), "{beyond}");
        for (start, size) in [(5 * GIB, 4096), (4 * GIB, 4096), (6 * GIB, 4096), (7 * GIB, 2 * GIB)]
        {
            let error = ranges.add(RegionKind::Shared, start, MemorySize::bytes(size)).unwrap_err();
            assert!(matches!(error, MemoryError::Overlap { .. }), "{error}");
        }
    }

    #[test]
    fn impossible_regions_are_refused() {
        let add = |start, size| {
            let mut ranges = Ranges::new(MemorySize::mib(4));
            ranges.add(RegionKind::Extra, start, MemorySize::bytes(size))
        };
        for (start, size) in [(8 * GIB, 0), (8 * GIB + 1, 4096), (8 * GIB, 4095)] {
            let error = add(start, size).unwrap_err();
            assert!(matches!(error, MemoryError::Alignment { .. }), "{error}");
        }
        // Inside the hole, below it, around the end of the address space.
        for (start, size) in [(3 * GIB, 4096), (GIB, 4096), (1 << 52, 4096), (!4095, 4096)] {
            let error = add(start, size).unwrap_err();
            assert!(matches!(error, MemoryError::Place { .. }), "{error}");
        }
        let mut ranges = Ranges::new(MemorySize::mib(4));
        let many = (0..).map(|n| ranges.add(RegionKind::Extra, (8 + n) * GIB, MemorySize::kib(4)));
        let taken = many.map_while(|result| result.ok()).count();
        assert_eq!(taken, Ranges::MOST_ADDED);
    }
}
