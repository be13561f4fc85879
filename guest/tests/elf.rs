//! The guest as a loader sees it.

#![allow(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "here a panic is a failed test"
)]

use sparkler_guest::ELF;

const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const EXECUTABLE: u32 = 1;
const WRITABLE: u32 = 2;
const PAGE: u64 = 4096;
const MIB: u64 = 1 << 20;

#[derive(Debug)]
struct Segment {
    kind: u32,
    flags: u32,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

fn number<const SIZE: usize>(at: u64) -> u64 {
    let at = usize::try_from(at).unwrap();
    let mut bytes = [0; 8];
    bytes[..SIZE].copy_from_slice(&ELF[at..at + SIZE]);
    u64::from_le_bytes(bytes)
}

fn segments() -> Vec<Segment> {
    let headers = number::<8>(32);
    (0..number::<2>(56))
        .map(|index| headers + 56 * index)
        .map(|header| Segment {
            kind: number::<4>(header).try_into().unwrap(),
            flags: number::<4>(header + 4).try_into().unwrap(),
            offset: number::<8>(header + 8),
            address: number::<8>(header + 24),
            file_size: number::<8>(header + 32),
            memory_size: number::<8>(header + 40),
        })
        .collect()
}

fn loaded() -> Vec<Segment> {
    segments().into_iter().filter(|segment| segment.kind == PT_LOAD).collect()
}

/// The segment that holds an address, with bytes from the file.
fn holding(address: u64) -> Segment {
    loaded()
        .into_iter()
        .find(|s| (s.address..s.address + s.file_size).contains(&address))
        .unwrap_or_else(|| panic!("{address:#x} is in no segment"))
}

/// The first instructions at an address: `mov al, 1; out 0xf8, al`.
fn writes_mark_1(address: u64) -> bool {
    let segment = holding(address);
    let at = usize::try_from(segment.offset + address - segment.address).unwrap();
    segment.flags & EXECUTABLE != 0 && ELF[at..at + 4] == [0xb0, 1, 0xe6, 0xf8]
}

#[test]
fn is_a_small_static_x86_64_program() {
    assert_eq!(&ELF[..6], b"\x7fELF\x02\x01", "64-bit, little endian");
    assert_eq!(number::<2>(16), 2, "ET_EXEC");
    assert_eq!(number::<2>(18), 62, "EM_X86_64");
    assert!(ELF.len() < 56 << 10, "{} bytes", ELF.len());
}

#[test]
fn segments_are_page_aligned_and_between_1_and_4_mib() {
    let mut end = MIB;
    for segment in loaded() {
        assert_eq!(segment.address % PAGE, 0, "{segment:?}");
        assert_eq!(segment.offset % PAGE, 0, "{segment:?}");
        assert!(segment.address >= end, "overlaps: {segment:?}");
        assert!(segment.file_size <= segment.memory_size, "{segment:?}");
        let rights = segment.flags & (EXECUTABLE | WRITABLE);
        assert_ne!(rights, EXECUTABLE | WRITABLE, "{segment:?}");
        end = segment.address + segment.memory_size;
    }
    assert_eq!(loaded().len(), 2);
    assert!(end <= 4 * MIB, "ends at {end:#x}");
}

#[test]
fn nothing_but_load_note_and_stack_headers() {
    const PT_GNU_STACK: u32 = 0x6474_e551;
    for segment in segments() {
        assert!([PT_LOAD, PT_NOTE, PT_GNU_STACK].contains(&segment.kind), "{segment:?}");
    }
}

#[test]
fn the_64_bit_entry_first_writes_the_boot_mark() {
    assert!(writes_mark_1(number::<8>(24)));
}

#[test]
fn the_pvh_note_leads_to_an_entry_that_first_writes_the_boot_mark() {
    let note = segments().into_iter().find(|segment| segment.kind == PT_NOTE).unwrap();
    assert_eq!(note.file_size, 24);
    assert_eq!(number::<4>(note.offset), 4, "length of the owner's name");
    assert_eq!(number::<4>(note.offset + 4), 8, "length of the description");
    assert_eq!(number::<4>(note.offset + 8), 18, "XEN_ELFNOTE_PHYS32_ENTRY");
    assert_eq!(number::<4>(note.offset + 12), u64::from(u32::from_le_bytes(*b"Xen\0")));
    let entry = number::<8>(note.offset + 16);
    assert_ne!(entry, number::<8>(24));
    assert!(writes_mark_1(entry));
}

#[test]
fn says_nothing_about_where_it_was_built() {
    for path in [env!("CARGO_MANIFEST_DIR"), "/rustc/", ".cargo"] {
        let found = ELF.windows(path.len()).any(|window| window == path.as_bytes());
        assert!(!found, "contains {path}");
    }
}
