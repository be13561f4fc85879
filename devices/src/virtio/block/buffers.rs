use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

/// A piece of guest memory, as a descriptor names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Guest-physical address of the first byte.
    pub address: GuestAddress,
    /// Bytes.
    pub len: u32,
}

/// The pieces that one direction of a request consists of, eaten from the front as data moves.
///
/// A driver may cut a request into descriptors as it likes (virtio 1.2, section 2.7.4), so header,
/// data and status are positions in this list, never descriptors of their own.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    list: Vec<Buffer>,
    first: usize,
    len: u64,
}

impl Buffers {
    /// Forgets everything but the capacity.
    pub(super) fn clear(&mut self) {
        self.list.clear();
        self.first = 0;
        self.len = 0;
    }

    pub(super) fn push(&mut self, buffer: Buffer) {
        if buffer.len > 0 {
            self.list.push(buffer);
            self.len = self.len.saturating_add(buffer.len.into());
        }
    }

    /// Bytes that are left.
    pub(super) fn len(&self) -> u64 {
        self.len
    }

    pub(super) fn as_slice(&self) -> &[Buffer] {
        self.list.get(self.first..).unwrap_or_default()
    }

    /// Drops `count` bytes from the front, or all if there are fewer.
    pub(super) fn advance(&mut self, count: u64) {
        let mut left = count.min(self.len);
        self.len = self.len.saturating_sub(left);
        while let Some(buffer) = self.list.get_mut(self.first) {
            match u32::try_from(left) {
                Ok(part) if part < buffer.len => {
                    buffer.address = GuestAddress(buffer.address.0.saturating_add(part.into()));
                    buffer.len = buffer.len.saturating_sub(part);
                    return;
                }
                _ => {
                    left = left.saturating_sub(buffer.len.into());
                    self.first = self.first.saturating_add(1);
                }
            }
        }
    }

    /// Takes the last byte away and returns where it is.
    pub(super) fn take_last_byte(&mut self) -> Option<GuestAddress> {
        let last = self.list.last_mut()?;
        last.len = last.len.checked_sub(1)?;
        let address = GuestAddress(last.address.0.checked_add(last.len.into())?);
        if last.len == 0 {
            self.list.pop();
        }
        self.len = self.len.checked_sub(1)?;
        Some(address)
    }

    /// Moves bytes from the front into all of `into`. `Ok(false)`, and nothing happens, if there are
    /// too few.
    pub(super) fn read(
        &mut self,
        memory: &GuestMemoryMmap,
        into: &mut [u8],
    ) -> Result<bool, GuestMemoryError> {
        let wanted = u64::try_from(into.len()).unwrap_or(u64::MAX);
        if wanted > self.len {
            return Ok(false);
        }
        let mut rest = into;
        for buffer in self.as_slice() {
            let part = rest.len().min(usize::try_from(buffer.len).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at_mut_checked(part).unwrap_or_default();
            memory.read_slice(now, buffer.address)?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.advance(wanted);
        Ok(true)
    }

    /// Moves `from` to the front, as far as there is room, and returns how many bytes that were.
    pub(super) fn write(
        &mut self,
        memory: &GuestMemoryMmap,
        from: &[u8],
    ) -> Result<u64, GuestMemoryError> {
        let mut rest = from;
        let mut written: u64 = 0;
        for buffer in self.as_slice() {
            let part = rest.len().min(usize::try_from(buffer.len).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at_checked(part).unwrap_or_default();
            memory.write_slice(now, buffer.address)?;
            written = written.saturating_add(u64::try_from(part).unwrap_or(0));
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
        self.advance(written);
        Ok(written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap()
    }

    fn buffers(pieces: &[(u64, u32)]) -> Buffers {
        let mut buffers = Buffers::default();
        for &(address, len) in pieces {
            buffers.push(Buffer { address: GuestAddress(address), len });
        }
        buffers
    }

    #[test]
    fn reads_and_writes_across_pieces_of_any_size() {
        let memory = memory();
        memory.write_slice(b"abcdefgh", GuestAddress(0x100)).unwrap();
        memory.write_slice(b"ijkl", GuestAddress(0x200)).unwrap();
        let mut all = buffers(&[(0x100, 3), (0x300, 0), (0x103, 5), (0x200, 4)]);
        let mut head = [0; 5];
        assert!(all.read(&memory, &mut head).unwrap());
        assert_eq!((&head, all.len()), (b"abcde", 7));
        assert!(!all.read(&memory, &mut [0; 8]).unwrap());
        assert_eq!(all.len(), 7, "a read that does not fit takes nothing");
        assert_eq!(all.write(&memory, b"FGHIJ").unwrap(), 5);
        assert_eq!(all.write(&memory, b"KLMN").unwrap(), 2);
        assert_eq!(all.len(), 0);
        assert_eq!(memory.read_obj::<[u8; 8]>(GuestAddress(0x100)).unwrap(), *b"abcdeFGH");
        assert_eq!(memory.read_obj::<[u8; 4]>(GuestAddress(0x200)).unwrap(), *b"IJKL");
    }

    #[test]
    fn the_last_byte_may_be_a_piece_of_its_own_or_not() {
        let mut one = buffers(&[(0x100, 2), (0x200, 1)]);
        assert_eq!(one.take_last_byte(), Some(GuestAddress(0x200)));
        assert_eq!(one.take_last_byte(), Some(GuestAddress(0x101)));
        assert_eq!((one.len(), one.as_slice().len()), (1, 1));
        assert_eq!(one.take_last_byte(), Some(GuestAddress(0x100)));
        assert_eq!(one.take_last_byte(), None);
    }

    #[test]
    fn advances_to_a_border_and_past_the_end() {
        let mut three = buffers(&[(0, 4), (8, 4), (16, 4)]);
        three.advance(4);
        assert_eq!(three.as_slice().first().map(|first| first.address.0), Some(8));
        three.advance(6);
        assert_eq!(three.as_slice(), [Buffer { address: GuestAddress(18), len: 2 }]);
        three.advance(u64::MAX);
        assert_eq!((three.len(), three.as_slice().len()), (0, 0));
    }
}
