//! bzImage headers and payloads: no panic, no unbounded memory or time.
//!
//! Each input starts as a valid bzImage whose payload is an ELF file, packed in one of the ways
//! that Linux uses. The fuzzer then sets header fields, patches the payload, replaces it, or cuts
//! the file; unchanged ones must load.

#![no_main]

use std::io::Write;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sparkler_loader::{BootConfig, Cmdline, Initrd, Kernel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const LOAD_ADDRESS: u64 = 2 << 20;
const TEXT_LEN: usize = 20_000;
const PAYLOAD_OFFSET: usize = 1024;

#[derive(Arbitrary, Debug)]
struct Input {
    compression: u8,
    fields: Vec<(Field, u64)>,
    header_patches: Vec<(u16, u8)>,
    payload: Payload,
    stated_size: Option<u32>,
    cut: Option<u16>,
    has_initrd: bool,
}

#[derive(Arbitrary, Debug)]
enum Payload {
    Patched(Vec<(u16, u8)>),
    /// Behind the first bytes of the valid one, as many as are given.
    Replaced(u8, Vec<u8>),
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Field {
    SetupSects,
    Jump,
    Version,
    InitrdAddrMax,
    CmdlineSize,
    PayloadOffset,
    PayloadLength,
    PrefAddress,
    InitSize,
}

impl Field {
    /// Offset and size in the file.
    fn place(self) -> (usize, usize) {
        match self {
            Self::SetupSects => (0x1f1, 1),
            Self::Jump => (0x200, 2),
            Self::Version => (0x206, 2),
            Self::InitrdAddrMax => (0x22c, 4),
            Self::CmdlineSize => (0x238, 4),
            Self::PayloadOffset => (0x248, 4),
            Self::PayloadLength => (0x24c, 4),
            Self::PrefAddress => (0x258, 8),
            Self::InitSize => (0x260, 4),
        }
    }

    fn set(self, file: &mut [u8], value: u64) {
        let (offset, size) = self.place();
        file[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

fuzz_target!(|input: Input| {
    let valid = &payloads()[usize::from(input.compression) % payloads().len()];
    let mut payload = match &input.payload {
        Payload::Patched(patches) => {
            let mut payload = valid.clone();
            patch(&mut payload, patches);
            payload
        }
        Payload::Replaced(keep, bytes) => {
            let mut payload = valid[..usize::from(*keep).min(valid.len())].to_vec();
            payload.extend(bytes);
            payload
        }
    };
    if let (Some(size), Some(place)) = (input.stated_size, payload.last_chunk_mut()) {
        *place = (size % (8 << 20)).to_le_bytes();
    }
    let mut file = header(payload.len());
    for &(field, value) in &input.fields {
        field.set(&mut file, value);
    }
    patch(&mut file, &input.header_patches);
    file.extend(&payload);
    file.truncate(input.cut.map_or(usize::MAX, usize::from));
    let is_valid = payload == *valid && file == image(valid);

    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    let cmdline = Cmdline::new("console=ttyS0").unwrap();
    let initrd = input.has_initrd.then(|| Initrd::bytes(vec![1; 5000]));
    let config =
        BootConfig { cmdline: &cmdline, initrd: initrd.as_ref(), rsdp: None, reserved: &[] };
    let result = Kernel::bytes(file).load(&memory, &config);
    if is_valid {
        assert_eq!(result.expect("it is valid").instruction_pointer.0, LOAD_ADDRESS);
        let mut loaded = vec![0; TEXT_LEN];
        memory.read_slice(&mut loaded, GuestAddress(LOAD_ADDRESS)).unwrap();
        assert!(loaded == text());
    }
});

fn patch(bytes: &mut [u8], patches: &[(u16, u8)]) {
    for &(offset, value) in patches {
        let offset = usize::from(offset) % bytes.len().max(1);
        if let Some(byte) = bytes.get_mut(offset) {
            *byte = value;
        }
    }
}

fn image(payload: &[u8]) -> Vec<u8> {
    let mut file = header(payload.len());
    file.extend(payload);
    file
}

/// Two sectors: boot sector and setup, of protocol 2.15.
fn header(payload_len: usize) -> Vec<u8> {
    let mut file = vec![0; PAYLOAD_OFFSET];
    file[0x1fe..0x206].copy_from_slice(b"\x55\xaa\xeb\x6aHdrS");
    Field::SetupSects.set(&mut file, 1);
    Field::Version.set(&mut file, 0x20f);
    Field::InitrdAddrMax.set(&mut file, 0x7fff_ffff);
    Field::CmdlineSize.set(&mut file, 2047);
    Field::PayloadLength.set(&mut file, payload_len as u64);
    Field::PrefAddress.set(&mut file, LOAD_ADDRESS);
    Field::InitSize.set(&mut file, 1 << 16);
    file
}

/// Calls and jumps, which the x86 filter of xz rewrites.
fn text() -> Vec<u8> {
    (0..TEXT_LEN).map(|i| if i % 7 == 0 { 0xe8 } else { (i / 7 % 5) as u8 }).collect()
}

fn elf() -> Vec<u8> {
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    for field in [LOAD_ADDRESS, 64, 0] {
        file.extend(field.to_le_bytes());
    }
    for field in [0u16, 0, 64, 56, 1, 0, 0, 0] {
        file.extend(field.to_le_bytes());
    }
    for field in [1u32, 7] {
        file.extend(field.to_le_bytes());
    }
    let len = TEXT_LEN as u64;
    for field in [120, LOAD_ADDRESS, LOAD_ADDRESS, len, len + 0x1000, 0x1000] {
        file.extend(field.to_le_bytes());
    }
    file.extend(text());
    file
}

fn payloads() -> &'static [Vec<u8>; 6] {
    static PAYLOADS: OnceLock<[Vec<u8>; 6]> = OnceLock::new();
    PAYLOADS.get_or_init(|| {
        let elf = elf();
        let size = (elf.len() as u32).to_le_bytes();
        let with_size = |mut packed: Vec<u8>| {
            packed.extend(size);
            packed
        };
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        gzip.write_all(&elf).unwrap();
        let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        bzip2.write_all(&elf).unwrap();
        let mut lz4 = b"\x02\x21\x4c\x18".to_vec();
        let block = lz4_flex::block::compress(&elf);
        lz4.extend((block.len() as u32).to_le_bytes());
        lz4.extend(block);
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut options = lzma_rust2::XzOptions::with_preset(1);
        options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
        let mut xz = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        xz.write_all(&elf).unwrap();
        let options = lzma_rust2::LzmaOptions::with_preset(1);
        let mut lzma = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
        lzma.write_all(&elf).unwrap();
        [
            gzip.finish().unwrap(),
            with_size(bzip2.finish().unwrap()),
            with_size(lz4),
            with_size(ruzstd::encoding::compress_to_vec(elf.as_slice(), level)),
            with_size(xz.finish().unwrap()),
            with_size(lzma.finish().unwrap()),
        ]
    })
}
