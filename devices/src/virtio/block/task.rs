//! One request in progress, as the operations that it takes.

use std::ops;

use super::super::Chain;
use super::super::token_bucket::Cost;
use super::engine::{Data, Operation};
use super::request::{Extent, HEADER_LEN, Range};

/// The most bytes that one operation moves.
const MAX_TRANSFER: usize = 1 << 20;
/// The most bytes that one operation discards or zeroes.
const MAX_RANGE: u64 = 32 << 20;

#[derive(Debug)]
pub(super) struct Task {
    pub(super) chain: Chain,
    pub(super) work: Work,
    /// A complete write must be durable too.
    pub(super) write_through: bool,
}

#[derive(Debug)]
pub(super) enum Work {
    Read(Move),
    Write(Move),
    Flush,
    /// What is left, the last one being next.
    Discard(Vec<Range>),
    WriteZeroes(Vec<Range>),
}

impl Work {
    pub(super) fn is_read(&self) -> bool {
        matches!(self, Self::Read(_))
    }

    pub(super) fn is_write(&self) -> bool {
        matches!(self, Self::Write(_))
    }

    pub(super) fn cost(&self) -> Cost {
        match self {
            Self::Read(Move { len, .. }) | Self::Write(Move { len, .. }) => Cost::one(*len),
            Self::Flush => Cost::one(0),
            Self::Discard(ranges) => Cost { operations: pieces(ranges), bytes: 0 },
            Self::WriteZeroes(ranges) => {
                let lens = ranges.iter().map(|range| range.extent.len);
                Cost { operations: pieces(ranges), bytes: lens.fold(0, u64::saturating_add) }
            }
        }
    }
}

/// How far a read or write is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Move {
    /// Of the whole on the disk.
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) moved: usize,
}

impl Task {
    /// The most bytes that one of its operations moves.
    pub(super) fn weight(&self) -> usize {
        match &self.work {
            Work::Read(part) | Work::Write(part) => part.len.min(MAX_TRANSFER),
            Work::Flush | Work::Discard(_) | Work::WriteZeroes(_) => 0,
        }
    }

    /// What is to be done next; `None`: nothing more.
    pub(super) fn next_operation(&self) -> Option<Operation<'_>> {
        match &self.work {
            Work::Read(part) => {
                let (offset, range) = part.next(0)?;
                Some(Operation::Read { offset, data: Data::to_driver(&self.chain, range) })
            }
            Work::Write(part) => {
                let (offset, range) = part.next(HEADER_LEN)?;
                Some(Operation::Write { offset, data: Data::from_driver(&self.chain, range) })
            }
            Work::Flush => None,
            Work::Discard(ranges) => {
                let Extent { offset, len } = ranges.last()?.extent;
                Some(Operation::Discard { offset, len: len.min(MAX_RANGE) })
            }
            Work::WriteZeroes(ranges) => {
                let Range { extent: Extent { offset, len }, unmap } = *ranges.last()?;
                Some(Operation::WriteZeroes { offset, len: len.min(MAX_RANGE), unmap })
            }
        }
    }

    /// The operation of [`next_operation`](Self::next_operation) has moved `count` bytes, if it was
    /// one that moves any.
    pub(super) fn advance(&mut self, count: usize) {
        match &mut self.work {
            Work::Read(part) | Work::Write(part) => {
                part.moved = part.moved.saturating_add(count).min(part.len);
            }
            Work::Flush => {}
            Work::Discard(ranges) | Work::WriteZeroes(ranges) => {
                if let Some(Range { extent, .. }) = ranges.last_mut() {
                    extent.offset = extent.offset.saturating_add(MAX_RANGE);
                    extent.len = extent.len.saturating_sub(MAX_RANGE);
                    if extent.len == 0 {
                        ranges.pop();
                    }
                }
            }
        }
    }

    /// Whether the request ends only after a sync.
    pub(super) fn must_sync(&self) -> bool {
        match &self.work {
            Work::Read(_) => false,
            Work::Flush => true,
            Work::Write(_) | Work::Discard(_) | Work::WriteZeroes(_) => self.write_through,
        }
    }
}

impl Move {
    /// Where on the disk, and which bytes of the chain, whose data begins at `start`.
    fn next(&self, start: usize) -> Option<(u64, ops::Range<usize>)> {
        let left = self.len.checked_sub(self.moved).filter(|&left| left > 0)?;
        let from = start.saturating_add(self.moved);
        let offset = self.offset.saturating_add(u64::try_from(self.moved).ok()?);
        Some((offset, from..from.saturating_add(left.min(MAX_TRANSFER))))
    }
}

/// How many operations `ranges` are; at least one.
fn pieces(ranges: &[Range]) -> u64 {
    let pieces = ranges.iter().map(|range| range.extent.len.div_ceil(MAX_RANGE));
    pieces.fold(0, u64::saturating_add).max(1)
}
