// A bench of ours over a file of ours: what does not fit ends it.
#![allow(clippy::indexing_slicing)]

/// As much as there is to load in Debian's uncompressed kernel.
pub const LARGE_KERNEL_PAYLOAD: usize = 53_000_000;
/// Where it goes in guest memory: behind the built-in guest, all of which is below.
pub const LARGE_KERNEL_ADDRESS: u64 = 8 << 20;

const PROGRAM_HEADER_SIZE: usize = 56;
const PT_LOAD: u32 = 1;

/// `elf`, the built-in guest, with one more segment of 53 MB that no page of zeros, and no
/// page like another, makes cheaper to load.
///
/// # Panics
/// If `elf` is not a little-endian ELF64 file with program headers.
pub fn large_kernel(elf: &[u8]) -> Vec<u8> {
    let u16_at = |offset: usize| u16::from_le_bytes([elf[offset], elf[offset + 1]]);
    let headers =
        usize::try_from(elf[32..40].iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b)));
    let headers = headers.unwrap_or(usize::MAX);
    let count = usize::from(u16_at(56));

    // The headers move to the end of the old file, where there is room for one more.
    let mut large = elf.to_vec();
    large.resize(elf.len().next_multiple_of(4096), 0);
    let moved = large.len();
    large.extend_from_slice(&elf[headers..headers + count * PROGRAM_HEADER_SIZE]);
    let payload = (moved + (count + 1) * PROGRAM_HEADER_SIZE).next_multiple_of(4096);
    let (address, size) = (LARGE_KERNEL_ADDRESS, LARGE_KERNEL_PAYLOAD as u64);
    large.extend_from_slice(&PT_LOAD.to_le_bytes());
    large.extend_from_slice(&4u32.to_le_bytes()); // readable
    for field in [payload as u64, address, address, size, size, 4096] {
        large.extend_from_slice(&field.to_le_bytes());
    }
    large[32..40].copy_from_slice(&(moved as u64).to_le_bytes());
    large[56..58].copy_from_slice(&u16_at(56).wrapping_add(1).to_le_bytes());
    large.resize(payload, 0);

    // xorshift64: no page like another.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    large.extend((0..LARGE_KERNEL_PAYLOAD / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    }));
    large
}
