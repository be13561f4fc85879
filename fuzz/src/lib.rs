//! What the targets share.

/// The lengths of the buffers for so many bytes: the first as chosen, the rest in one.
pub fn cut(len: usize, cuts: impl IntoIterator<Item = usize>) -> Vec<usize> {
    let mut left = len;
    let mut pieces = Vec::new();
    for cut in cuts {
        let piece = cut.min(left);
        if piece > 0 {
            pieces.push(piece);
            left -= piece;
        }
    }
    if left > 0 {
        pieces.push(left);
    }
    pieces
}

/// What the fuzzer chose, and then numbers up to `len` bytes that follow from it: a short input is a long
/// run of steps too.
pub fn prolong(chosen: &[u8], len: usize) -> Vec<u8> {
    let mut state = chosen.iter().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut bytes = chosen.to_vec();
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        bytes.push((state >> 33) as u8);
    }
    bytes
}
