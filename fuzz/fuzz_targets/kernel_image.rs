//! Kernel images of every kind into a small guest: no panic, no unbounded memory, and whatever is
//! loaded lies where the file says.
//!
//! Most inputs are ELF files built from the fuzzer's choice of segments, notes and entry points, so
//! that they reach the loading itself; bytes of them are then overwritten and the end cut off.
//! The rest are the fuzzer's bytes as they are.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use linux_loader::bootparam::boot_params;
use sparkler_loader::{BootConfig, Cmdline, Initrd, Kernel, Protocol};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MIB: u64 = 1 << 20;
/// Memory: 4 MiB in two regions that touch, and 64 KiB above the hole.
const REGIONS: [(u64, usize); 3] = [(0, 3 << 20), (3 << 20, 1 << 20), (4 << 30, 64 << 10)];

#[derive(Arbitrary, Debug)]
struct Input {
    image: Image,
    protocol: Option<bool>,
    cmdline_len: u16,
    initrd_len: Option<u32>,
}

#[derive(Arbitrary, Debug)]
enum Image {
    Elf { elf: Elf, patches: Vec<(u16, u8)>, cut: Option<u16> },
    Raw(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
struct Elf {
    entry: Address,
    segments: Vec<Segment>,
    notes: Vec<Note>,
}

#[derive(Arbitrary, Debug)]
struct Segment {
    address: Address,
    data: Vec<u8>,
    zeros: u32,
    huge: bool,
}

/// Mostly within memory, sometimes anywhere.
#[derive(Arbitrary, Debug)]
enum Address {
    Low(u32),
    High(u16),
    Any(u64),
}

#[derive(Arbitrary, Debug)]
struct Note {
    is_pvh: bool,
    name: [u8; 4],
    kind: u32,
    entry: Address,
    len: u8,
}

fuzz_target!(|input: Input| {
    let Ok(cmdline) = Cmdline::new(&"x".repeat(input.cmdline_len.into())) else {
        assert!(usize::from(input.cmdline_len) > Cmdline::MAX_LEN);
        return;
    };
    let initrd = input.initrd_len.map(|len| vec![0xab; len as usize % (8 << 20)]);
    let (file, segments) = match &input.image {
        Image::Raw(bytes) => (bytes.clone(), Vec::new()),
        Image::Elf { elf, patches, cut } => {
            let mut file = elf.build();
            for &(offset, value) in patches {
                if let Some(byte) = file.get_mut(usize::from(offset)) {
                    *byte = value;
                }
            }
            file.truncate(cut.map_or(usize::MAX, usize::from));
            let intact = patches.is_empty() && cut.is_none();
            (file, if intact { elf.placed() } else { Vec::new() })
        }
    };
    let mut kernel = Kernel::bytes(file);
    if let Some(is_pvh) = input.protocol {
        kernel = kernel.with_protocol(if is_pvh { Protocol::Pvh } else { Protocol::Linux64 });
    }
    let regions = REGIONS.map(|(start, len)| (GuestAddress(start), len));
    let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
    let loaded_initrd = initrd.clone().map(Initrd::bytes);
    let config =
        BootConfig { cmdline: &cmdline, initrd: loaded_initrd.as_ref(), rsdp: None, reserved: &[] };
    let Ok(entry) = kernel.load(&memory, &config) else { return };

    let rip = entry.instruction_pointer.0;
    assert!(
        rip >= MIB && REGIONS.iter().any(|&(start, len)| rip >= start && rip < start + len as u64)
    );
    for (address, data) in segments {
        assert!(read(&memory, address, data.len()) == data, "segment at {address:#x}");
    }
    if let (Some(initrd), Protocol::Linux64) = (initrd, entry.protocol) {
        let params: boot_params = memory.read_obj(entry.boot_info).unwrap();
        let (address, size) = (params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        assert_eq!(size as usize, initrd.len());
        assert!(address % 0x1000 == 0 && read(&memory, address.into(), initrd.len()) == initrd);
    }
});

fn read(memory: &GuestMemoryMmap, address: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
    bytes
}

impl Address {
    fn get(&self) -> u64 {
        match *self {
            Self::Low(offset) => MIB + u64::from(offset) % (3 * MIB),
            Self::High(offset) => (4 << 30) + u64::from(offset),
            Self::Any(address) => address,
        }
    }
}

impl Elf {
    fn segments(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().take(16)
    }

    fn placed(&self) -> Vec<(u64, Vec<u8>)> {
        self.segments().map(|segment| (segment.address.get(), segment.data.clone())).collect()
    }

    fn build(&self) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        for field in [self.entry.get(), 64, 0] {
            file.extend(field.to_le_bytes());
        }
        let headers = self.segments().count() as u16 + 1;
        for field in [0, 0, 64, 56, headers, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        let start = 64 + 56 * u64::from(headers);
        let mut contents: Vec<u8> = Vec::new();
        for segment in self.segments() {
            let (offset, size) = (start + contents.len() as u64, segment.data.len() as u64);
            let zeros =
                if segment.huge { u64::from(segment.zeros) << 32 } else { segment.zeros.into() };
            let memory_size =
                size.saturating_add(zeros % if segment.huge { u64::MAX } else { MIB });
            program_header(&mut file, 1, offset, segment.address.get(), size, memory_size);
            contents.extend(&segment.data);
        }
        let notes: Vec<u8> = self.notes.iter().flat_map(Note::build).collect();
        let size = notes.len() as u64;
        program_header(&mut file, 4, start + contents.len() as u64, 0, size, size);
        file.extend(contents);
        file.extend(notes);
        file
    }
}

impl Note {
    fn build(&self) -> Vec<u8> {
        let (name, kind) = if self.is_pvh { (*b"Xen\0", 18) } else { (self.name, self.kind) };
        let len = u32::from(self.len % 12);
        let mut note = Vec::new();
        for field in [4, len, kind, u32::from_le_bytes(name)] {
            note.extend(field.to_le_bytes());
        }
        let mut descriptor = self.entry.get().to_le_bytes().to_vec();
        descriptor.resize(len.next_multiple_of(4) as usize, 0);
        note.extend(descriptor);
        note
    }
}

fn program_header(
    file: &mut Vec<u8>,
    kind: u32,
    offset: u64,
    address: u64,
    size: u64,
    memory: u64,
) {
    for field in [kind, 7] {
        file.extend(field.to_le_bytes());
    }
    for field in [offset, address, address, size, memory, 0x1000] {
        file.extend(field.to_le_bytes());
    }
}
