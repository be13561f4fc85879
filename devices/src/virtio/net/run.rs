//! The writable bytes of several chains as one run of bytes.

use std::collections::VecDeque;
use std::ops::Range;

use vm_memory::VolatileSlice;

use super::super::{AccessError, Chain};

/// The bytes of `range` as they lie in host memory, as far as there are so many.
pub(super) fn slices(
    chains: &VecDeque<Chain>,
    range: Range<usize>,
) -> impl Iterator<Item = Result<VolatileSlice<'_>, AccessError>> {
    let mut start = 0usize;
    let parts = chains.iter().map_while(move |chain| {
        let before = start;
        let from = range.start.saturating_sub(before).min(chain.writable_len());
        let to = range.end.saturating_sub(before).min(chain.writable_len());
        start = before.saturating_add(chain.writable_len());
        (before < range.end).then(|| chain.writable_slices(from..to.max(from)))
    });
    parts.flatten()
}

/// Writes `data` at `offset`, as far as there are so many bytes: how many were written.
pub(super) fn write_at(
    chains: &VecDeque<Chain>,
    offset: usize,
    data: &[u8],
) -> Result<usize, AccessError> {
    let mut rest = data;
    for slice in slices(chains, offset..offset.saturating_add(data.len())) {
        let slice = slice?;
        let (here, behind) = rest.split_at(slice.len().min(rest.len()));
        slice.copy_from(here);
        rest = behind;
    }
    Ok(data.len().saturating_sub(rest.len()))
}

/// Fills `data` from `offset`, as far as there are so many bytes: how many were read.
pub(super) fn read_at(
    chains: &VecDeque<Chain>,
    offset: usize,
    data: &mut [u8],
) -> Result<usize, AccessError> {
    let mut done = 0usize;
    for slice in slices(chains, offset..offset.saturating_add(data.len())) {
        let to = data.get_mut(done..).unwrap_or_default();
        done = done.saturating_add(slice?.copy_to(to));
    }
    Ok(done)
}
