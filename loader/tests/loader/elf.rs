//! ELF kernels: what is loaded where, how the protocol is chosen, and what is refused.

use crate::support::{Elf, MIB, PAGE, Segment, bytes, load, memory};
use sparkler_loader::{ElfError, Kernel, LoadError, Protocol};
use vm_memory::{GuestAddress, GuestMemoryMmap};

fn elf_error(file: Vec<u8>) -> ElfError {
    match load(&Kernel::bytes(file), &memory(32)) {
        Err(LoadError::Elf { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn segments_go_to_their_physical_addresses() {
    let elf = Elf::default();
    let memory = memory(32);
    let entry = load(&Kernel::bytes(elf.build()), &memory).unwrap();
    assert_eq!(entry.protocol, Protocol::Linux64);
    assert_eq!(entry.instruction_pointer, GuestAddress(elf.entry));
    assert_eq!(entry.boot_info, sparkler_loader::layout::BOOT_PARAMS);
    assert_eq!(bytes(&memory, 16 * MIB, 5000), elf.segments[0].data);
    assert_eq!(bytes(&memory, 17 * MIB, 100), [0xda; 100]);
    assert_eq!(bytes(&memory, 17 * MIB + 100, 100), [0; 100]);
}

#[test]
fn a_segment_may_span_memory_regions_and_lie_above_the_hole() {
    let data: Vec<u8> = (0..40_000u32).map(|i| (i % 253) as u8).collect();
    let segment = |address| Segment { address, data: data.clone(), memory_size: 50_000 };
    let (seam, high) = (8 * MIB, 4 << 30);
    let elf = Elf {
        entry: seam,
        segments: vec![segment(seam - 10_000), segment(high)],
        ..Elf::default()
    };
    let path = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&path, elf.build()).unwrap();
    let kernels = [
        Kernel::bytes(elf.build()),
        Kernel::file(path.path()).unwrap(),
        Kernel::fd(path.reopen().unwrap().into()).unwrap(),
    ];
    for kernel in kernels {
        let ranges = [(0, 8 << 20), (seam, 8 << 20), (high, 1 << 20)];
        let ranges = ranges.map(|(start, len)| (GuestAddress(start), len));
        let memory = GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap();
        load(&kernel, &memory).unwrap();
        assert_eq!(bytes(&memory, seam - 10_000, data.len()), data, "{kernel:?}");
        assert_eq!(bytes(&memory, high, data.len()), data, "{kernel:?}");
    }
}

#[test]
fn the_protocol_follows_from_the_entry_points() {
    let (text, other) = (16 * MIB + 0x10, 16 * MIB + 0x40);
    let virtual_address = 0xffff_ffff_8100_0000;
    let note = u32::try_from(other).unwrap();
    let cases = [
        (text, None, Protocol::Linux64, text),
        (text, Some(note), Protocol::Linux64, text),
        (other, Some(note), Protocol::Pvh, other),
        (virtual_address, Some(note), Protocol::Pvh, other),
    ];
    for (entry, pvh_entry, protocol, instruction_pointer) in cases {
        let file = Elf { entry, pvh_entry, ..Elf::default() }.build();
        let entry = load(&Kernel::bytes(file), &memory(32)).unwrap();
        assert_eq!((entry.protocol, entry.instruction_pointer.0), (protocol, instruction_pointer));
    }
}

#[test]
fn a_protocol_can_be_demanded() {
    let pvh_entry = Some(0x100_0040);
    let both = Kernel::bytes(Elf { pvh_entry, ..Elf::default() }.build());
    let entry = load(&both.with_protocol(Protocol::Pvh), &memory(32)).unwrap();
    assert_eq!((entry.protocol, entry.instruction_pointer.0), (Protocol::Pvh, 0x100_0040));
    assert_eq!(entry.boot_info, sparkler_loader::layout::PVH_START_INFO);

    let linux = Kernel::bytes(Elf::default().build()).with_protocol(Protocol::Pvh);
    let error = load(&linux, &memory(32)).unwrap_err();
    assert!(matches!(error, LoadError::Elf { source: ElfError::NoPvhEntry, .. }), "{error:?}");

    let file = Elf { entry: 0, pvh_entry, ..Elf::default() }.build();
    let pvh = Kernel::bytes(file).with_protocol(Protocol::Linux64);
    let error = load(&pvh, &memory(32)).unwrap_err();
    let LoadError::Elf { source: ElfError::EntryOutside { entry: 0, protocol, .. }, .. } = error
    else {
        panic!("{error:?}")
    };
    assert_eq!(protocol, Protocol::Linux64);
}

#[test]
fn entry_points_outside_all_segments_are_refused() {
    let error = elf_error(Elf { entry: 18 * MIB, ..Elf::default() }.build());
    assert!(matches!(error, ElfError::EntryOutside { protocol: Protocol::Linux64, .. }), "{error}");
    let elf = Elf { entry: 0, pvh_entry: Some(0x8000), ..Elf::default() };
    let error = elf_error(elf.build());
    assert!(
        matches!(error, ElfError::EntryOutside { protocol: Protocol::Pvh, entry: 0x8000, .. }),
        "{error}"
    );
}

#[test]
fn files_for_other_machines_are_refused() {
    let error = elf_error(Elf { machine: 183, ..Elf::default() }.build());
    assert!(matches!(error, ElfError::Machine { machine: 183 }), "{error}");
    let error = elf_error(Elf { kind: 3, ..Elf::default() }.build());
    assert!(matches!(error, ElfError::NotExecutable { kind: 3 }), "{error}");
    let mut file = Elf::default().build();
    file[4] = 1;
    assert!(matches!(elf_error(file.clone()), ElfError::NotElf64));
    file[4..6].copy_from_slice(&[2, 2]);
    assert!(matches!(elf_error(file), ElfError::BigEndian));
    let mut file = Elf::default().build();
    file[54] = 32;
    assert!(matches!(elf_error(file), ElfError::ProgramHeaderSize { size: 32 }));
}

#[test]
fn cut_at_any_byte_it_is_refused() {
    let file = Elf { pvh_entry: Some(0x100_0040), ..Elf::default() }.build();
    for len in 4..file.len() {
        let error = elf_error(file[..len].to_vec());
        assert!(
            matches!(error, ElfError::Truncated { end, size, .. }
                if size == len as u64 && end > size && end <= file.len() as u64),
            "cut at {len}: {error:?}"
        );
    }
}

#[test]
fn segments_that_collide_or_do_not_fit_are_refused() {
    let with = |address, memory_size| {
        let mut elf = Elf::default();
        elf.segments.push(Segment { address, data: vec![1; 16], memory_size });
        elf_error(elf.build())
    };
    let error = with(16 * MIB + PAGE, PAGE);
    let ElfError::SegmentsOverlap { first: 0, second: 2, address, .. } = error else {
        panic!("{error:?}")
    };
    assert_eq!(address, 16 * MIB + PAGE);
    let error = with(17 * MIB + 2 * PAGE, PAGE);
    assert!(matches!(error, ElfError::SegmentsOverlap { first: 1, second: 2, .. }), "{error}");
    let error = with(15 * MIB, 4 * MIB);
    assert!(matches!(error, ElfError::SegmentsOverlap { first: 0, second: 2, .. }), "{error}");
    for address in [0, 0x7000, 0xf_ffff] {
        let error = with(address, PAGE);
        assert!(matches!(error, ElfError::SegmentTooLow { segment: 2, .. }), "{error}");
    }
    for size in [u64::MAX, u64::MAX - 18 * MIB + 1] {
        let error = with(18 * MIB, size);
        assert!(matches!(error, ElfError::SegmentWraps { segment: 2, .. }), "{error}");
    }
    let outside = [
        (32 * MIB, 16),
        (32 * MIB - 16, 17),
        (18 * MIB, u64::MAX - 19 * MIB),
        (3 << 30, PAGE),
        (0xfee0_0000, PAGE),
        (1 << 60, PAGE),
    ];
    for (address, size) in outside {
        let error = with(address, size);
        assert!(
            matches!(error, ElfError::SegmentOutsideMemory { segment: 2, start, .. }
                if start == address),
            "{error}"
        );
    }
    let error = with(18 * MIB, 15);
    assert!(matches!(error, ElfError::SegmentSize { file_size: 16, memory_size: 15, .. }));
}

#[test]
fn nothing_to_load_is_refused() {
    let elf = Elf { segments: Vec::new(), ..Elf::default() };
    assert!(matches!(elf_error(elf.build()), ElfError::NoSegments));
}

#[test]
fn huge_notes_are_refused_unread() {
    let mut file = Elf { pvh_entry: Some(0x100_0040), ..Elf::default() }.build();
    let note_header = 64 + 2 * 56;
    file[note_header + 32..note_header + 40].copy_from_slice(&0x2_0000u64.to_le_bytes());
    file.resize(file.len() + 0x2_0000, 0);
    let error = elf_error(file);
    assert!(matches!(error, ElfError::NotesTooLarge { size: 0x2_0000, .. }), "{error}");
}
