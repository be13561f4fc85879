//! The ELF note by which a kernel offers a PVH entry point: `XEN_ELFNOTE_PHYS32_ENTRY`
//! (xen/include/public/elfnote.h).

use linux_loader::elf::Elf64_Phdr;

use crate::elf::{ElfError, check_within};
use crate::image::Image;

const NAME: &[u8] = b"Xen\0";
const PHYS32_ENTRY: u32 = 18;

const WHAT: &str = "the notes";

/// The most bytes of notes that are read; Linux has about 500.
const LIMIT: u64 = 64 << 10;

/// The places in the file of these `PT_NOTE` segments, as offset and size.
pub(crate) fn places<'a>(
    file_size: u64,
    segments: impl Iterator<Item = &'a Elf64_Phdr>,
) -> Result<Vec<(u64, usize)>, ElfError> {
    let mut total = 0u64;
    let place = |segment: &Elf64_Phdr| {
        check_within(WHAT, segment.p_offset, segment.p_filesz, file_size)?;
        total = total.saturating_add(segment.p_filesz);
        let size = usize::try_from(segment.p_filesz).ok().filter(|_| total <= LIMIT);
        let size = size.ok_or(ElfError::NotesTooLarge { size: total, limit: LIMIT })?;
        Ok((segment.p_offset, size))
    };
    segments.map(place).collect()
}

/// The entry address in the first such note at these places.
pub(crate) fn find(image: &Image, places: &[(u64, usize)]) -> Result<Option<u64>, ElfError> {
    for &(offset, size) in places {
        let bytes =
            image.bytes_at(offset, size).map_err(|source| ElfError::Read { what: WHAT, source })?;
        if let Some(entry) = find_in(&bytes)? {
            return Ok(Some(entry));
        }
    }
    Ok(None)
}

/// Walks one segment. A note that reaches beyond its segment ends the walk: it may be of a kind
/// that is not aligned as Linux's are, and concerns nobody here.
pub(crate) fn find_in(mut notes: &[u8]) -> Result<Option<u64>, ElfError> {
    while let Some((note, rest)) = Note::split(notes) {
        if note.kind == PHYS32_ENTRY && note.name == NAME {
            return note.address().map(Some);
        }
        notes = rest;
    }
    Ok(None)
}

struct Note<'a> {
    kind: u32,
    name: &'a [u8],
    descriptor: &'a [u8],
    descriptor_size: u32,
}

impl<'a> Note<'a> {
    /// Name and descriptor are each padded to 4 bytes (linux/elfnote.h), whatever `p_align` says.
    fn split(notes: &'a [u8]) -> Option<(Self, &'a [u8])> {
        let (name_size, notes) = split_u32(notes)?;
        let (descriptor_size, notes) = split_u32(notes)?;
        let (kind, notes) = split_u32(notes)?;
        let (name, notes) = split_padded(notes, name_size)?;
        let (descriptor, notes) = split_padded(notes, descriptor_size)?;
        Some((Self { kind, name, descriptor, descriptor_size }, notes))
    }

    /// A 32-bit address, in as many bytes as the linker made of it.
    fn address(&self) -> Result<u64, ElfError> {
        let address = split_u32(self.descriptor).map(|(address, _)| u64::from(address));
        address.ok_or(ElfError::PvhNote { size: self.descriptor_size })
    }
}

fn split_u32(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (value, rest) = bytes.split_first_chunk()?;
    Some((u32::from_le_bytes(*value), rest))
}

/// The last field of a segment may lack its padding.
fn split_padded(bytes: &[u8], size: u32) -> Option<(&[u8], &[u8])> {
    let size = usize::try_from(size).ok()?;
    let (field, _) = bytes.split_at_checked(size)?;
    let padded = size.checked_next_multiple_of(4)?.min(bytes.len());
    Some((field, bytes.get(padded..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(name: &[u8], kind: u32, descriptor: &[u8]) -> Vec<u8> {
        let mut note = Vec::new();
        for size in [name.len(), descriptor.len()] {
            note.extend(u32::try_from(size).unwrap().to_le_bytes());
        }
        note.extend(kind.to_le_bytes());
        for field in [name, descriptor] {
            note.extend(field);
            note.resize(note.len().next_multiple_of(4), 0);
        }
        note
    }

    #[test]
    fn finds_the_entry_among_others() {
        let mut notes = note(b"Linux\0", 18, &[1; 5]);
        notes.extend(note(b"Xen\0", 17, &[2; 8]));
        notes.extend(note(b"Xen\0", 18, &0x10_0020u64.to_le_bytes()));
        assert_eq!(find_in(&notes).unwrap(), Some(0x10_0020));
        assert_eq!(find_in(&note(b"Xen\0", 18, &[4, 3, 2, 1])).unwrap(), Some(0x0102_0304));
        assert_eq!(find_in(&note(b"Xen\0", 17, &[4, 3, 2, 1])).unwrap(), None);
        assert_eq!(find_in(b"").unwrap(), None);
    }

    #[test]
    fn a_short_descriptor_is_an_error() {
        let error = find_in(&note(b"Xen\0", 18, &[1, 2, 3])).unwrap_err();
        assert!(matches!(error, ElfError::PvhNote { size: 3 }), "{error}");
    }

    #[test]
    fn cut_anywhere_it_ends_the_walk() {
        let mut notes = note(b"GNU\0", 3, &[9; 20]);
        notes.extend(note(b"Xen\0", 18, &[0, 0, 16, 0]));
        for len in 0..notes.len() {
            assert_eq!(find_in(&notes[..len]).unwrap(), None, "{len}");
        }
        let huge = [0xff; 64];
        assert_eq!(find_in(&huge).unwrap(), None);
    }
}
