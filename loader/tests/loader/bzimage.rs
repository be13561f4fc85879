//! bzImage kernels: every compression, broken and hostile payloads, and a real one.

use std::io::Write;
use std::time::Instant;

use sparkler_loader::{BzImageError, Compression, Kernel, LoadError, Protocol};

use crate::support::{BzImage, Elf, MIB, bytes, load, memory};

/// A kernel of 70 KB whose text looks like code to the x86 filter of xz.
fn elf() -> Elf {
    let mut elf = Elf::default();
    let call = |i: u32| [&[0xe8], &(i * 3 % 0x1_0000).to_le_bytes()[..], &[0x90, 0x90]].concat();
    elf.segments[0].data = (0..10_000).flat_map(call).collect();
    elf.segments[0].memory_size = MIB;
    elf
}

fn with_size(mut packed: Vec<u8>, size: u32) -> Vec<u8> {
    packed.extend(size.to_le_bytes());
    packed
}

fn pack(compression: Compression, data: &[u8]) -> Vec<u8> {
    let packed = match compression {
        Compression::Gzip => {
            let level = flate2::Compression::default();
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            return encoder.finish().unwrap();
        }
        Compression::Bzip2 => {
            let level = bzip2::Compression::default();
            let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), level);
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lz4 => {
            // The legacy frame, which lz4_flex reads only: blocks of 8 MiB with their packed size.
            let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
                frame.extend(block);
            }
            frame
        }
        Compression::Zstd => {
            let level = ruzstd::encoding::CompressionLevel::Fastest;
            ruzstd::encoding::compress_to_vec(data, level)
        }
        Compression::Xz => {
            // As the kernel packs itself: the x86 filter, then LZMA2, with a CRC32.
            let mut options = lzma_rust2::XzOptions::with_preset(6);
            options.set_check_sum_type(lzma_rust2::CheckType::Crc32);
            options.prepend_pre_filter(lzma_rust2::FilterType::BcjX86, 0);
            let mut encoder = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        Compression::Lzma => {
            let options = lzma_rust2::LzmaOptions::with_preset(6);
            let mut encoder =
                lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        other => panic!("{other}"),
    };
    with_size(packed, u32::try_from(data.len()).unwrap())
}

const ENABLED: &[Compression] = &[
    #[cfg(feature = "gzip")]
    Compression::Gzip,
    #[cfg(feature = "bzip2")]
    Compression::Bzip2,
    #[cfg(feature = "lz4")]
    Compression::Lz4,
    #[cfg(feature = "zstd")]
    Compression::Zstd,
    #[cfg(feature = "xz")]
    Compression::Xz,
    #[cfg(feature = "xz")]
    Compression::Lzma,
];

fn kernel(payload: Vec<u8>) -> Kernel {
    Kernel::bytes(BzImage::new(payload).build())
}

fn error(kernel: &Kernel, mib: usize) -> BzImageError {
    match load(kernel, &memory(mib)) {
        Err(LoadError::BzImage { source, .. }) => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_compression_is_unpacked() {
    let elf = elf();
    for &compression in ENABLED {
        let memory = memory(32);
        let entry = load(&kernel(pack(compression, &elf.build())), &memory).unwrap();
        assert_eq!(entry.protocol, Protocol::Linux64);
        assert_eq!(entry.instruction_pointer.0, elf.entry);
        let text = &elf.segments[0].data;
        assert!(bytes(&memory, 16 * MIB, text.len()) == *text, "{compression}");
        assert_eq!(bytes(&memory, 17 * MIB, 100), [0xda; 100], "{compression}");
    }
}

#[test]
fn a_compression_that_was_not_compiled_in_names_its_feature() {
    let all = [
        (Compression::Gzip, "gzip"),
        (Compression::Bzip2, "bzip2"),
        (Compression::Lz4, "lz4"),
        (Compression::Zstd, "zstd"),
        (Compression::Xz, "xz"),
        (Compression::Lzma, "xz"),
    ];
    for (compression, name) in all {
        if ENABLED.contains(&compression) {
            continue;
        }
        let error = error(&kernel(pack(compression, &elf().build())), 32);
        assert!(
            matches!(error, BzImageError::FeatureMissing { feature, .. } if feature == name),
            "{error:?}"
        );
    }
    let lzo = error(&kernel(b"\x89LZO\0\r\n\x1a\n".to_vec()), 32);
    assert!(
        matches!(lzo, BzImageError::UnsupportedCompression { compression: Compression::Lzo }),
        "{lzo}"
    );
}

#[test]
fn broken_payloads_name_the_compression() {
    let file = elf().build();
    for &compression in ENABLED {
        let packed = pack(compression, &file);
        let mut damaged = packed.clone();
        let middle = damaged.len() / 2;
        damaged[middle..middle + 64].iter_mut().for_each(|byte| *byte ^= 0x5a);
        match error(&kernel(damaged), 32) {
            BzImageError::Payload { compression: named, .. }
            | BzImageError::PayloadSize { compression: named, .. } => {
                assert_eq!(named, compression);
            }
            // LZ4 and LZMA have no checksum: damage can surface as late as this.
            BzImageError::NotElf | BzImageError::Elf(_) => {
                assert!(matches!(compression, Compression::Lz4 | Compression::Lzma));
            }
            other => panic!("{compression}: {other:?}"),
        }
        // Cut in the middle, with the size still behind.
        let mut cut = packed[..packed.len() / 2].to_vec();
        cut.extend(u32::try_from(file.len()).unwrap().to_le_bytes());
        let error = error(&kernel(cut), 32);
        assert!(
            matches!(&error, BzImageError::Payload { compression: named, .. }
                | BzImageError::PayloadSize { compression: named, longer: false, .. }
                if *named == compression),
            "{compression}: {error:?}"
        );
    }
}

#[test]
fn every_bit_of_a_checksummed_payload_counts() {
    let file = Elf::default().build();
    for &compression in ENABLED {
        // LZ4's legacy frame and LZMA carry no checksum.
        if matches!(compression, Compression::Lz4 | Compression::Lzma) {
            continue;
        }
        let packed = pack(compression, &file);
        // Behind gzip's header, which has bytes without a meaning for us.
        for position in (10..packed.len()).step_by(7) {
            let mut damaged = packed.clone();
            damaged[position] ^= 1 << (position % 8);
            let memory = memory(32);
            if load(&kernel(damaged), &memory).is_ok() {
                let text = bytes(&memory, 16 * MIB, 5000);
                assert!(text == Elf::default().segments[0].data, "{compression} at {position}");
            }
        }
    }
}

#[test]
fn a_wrong_size_is_an_error() {
    let file = elf().build();
    let size = u32::try_from(file.len()).unwrap();
    for &compression in ENABLED.iter().filter(|&&compression| compression != Compression::Gzip) {
        let mut packed = pack(compression, &file);
        packed.truncate(packed.len() - 4);
        for (stated, is_longer) in [(size - 1, true), (0, true), (size + 1, false)] {
            let error = error(&kernel(with_size(packed.clone(), stated)), 32);
            assert!(
                matches!(error, BzImageError::PayloadSize { longer, size, .. }
                    if longer == is_longer && size == u64::from(stated)),
                "{compression}: {error:?}"
            );
        }
    }
}

#[cfg(feature = "lz4")]
#[test]
fn lz4_in_several_blocks() {
    let mut elf = Elf::default();
    elf.segments[0].data = (0..5 << 19).flat_map(u32::to_le_bytes).collect();
    elf.segments[0].memory_size = 10 * MIB;
    elf.segments[1].address = 26 * MIB;
    let memory = memory(48);
    load(&kernel(pack(Compression::Lz4, &elf.build())), &memory).unwrap();
    assert!(bytes(&memory, 16 * MIB, 10 << 20) == elf.segments[0].data);
}

/// A Zstandard frame of 3 MiB that gives 100 GiB: 819,200 blocks of 128 KiB, each a single byte
/// with a count.
#[cfg(feature = "zstd")]
fn bomb() -> Vec<u8> {
    const BLOCK: u32 = 128 << 10;
    const RLE: u32 = 1;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, (17 - 10) << 3];
    for i in 1..=819_200 {
        let header = u32::from(i == 819_200) | RLE << 1 | BLOCK << 3;
        frame.extend(&header.to_le_bytes()[..3]);
        frame.push(0);
    }
    frame
}

/// The stated size has 32 bits: one above the guest's memory is refused, and unpacking stops at a
/// smaller one. All of it would take minutes and not fit into this process.
#[cfg(feature = "zstd")]
#[test]
fn a_bomb_is_not_unpacked() {
    let too_large = error(&kernel(with_size(bomb(), 1 << 30)), 32);
    let BzImageError::PayloadTooLarge { size, limit, .. } = too_large else {
        panic!("{too_large:?}")
    };
    assert_eq!((size, limit), (1 << 30, 32 << 20));
    // 100 GiB modulo 2^32 is 0; the others are lies.
    for stated in [0, 1, 4 << 20] {
        let error = error(&kernel(with_size(bomb(), stated)), 32);
        assert!(matches!(error, BzImageError::PayloadSize { longer: true, .. }), "{error:?}");
    }
}

#[test]
fn a_kernel_that_wants_more_memory_than_there_is_is_refused() {
    let packed = pack(Compression::Lz4, &elf().build());
    let image = BzImage { init_size: 20 << 20, ..BzImage::new(packed) };
    let image = Kernel::bytes(image.build());
    let too_small = error(&image, 32);
    let BzImageError::MemoryTooSmall { end, available } = too_small else {
        panic!("{too_small:?}")
    };
    assert_eq!((end, available), (36 * MIB, 32 * MIB));
    assert!(too_small.to_string().contains("36 MiB"), "{too_small}");
    load(&image, &memory(36)).unwrap();
}

#[test]
fn headers_that_lie_are_refused() {
    let image = BzImage::new(vec![0; 100]);
    let with = |offset: usize, value: &[u8]| {
        let mut file = image.build();
        file[offset..offset + value.len()].copy_from_slice(value);
        error(&Kernel::bytes(file), 32)
    };
    let version = with(0x206, &0x207u16.to_le_bytes());
    assert!(matches!(version, BzImageError::Version { version: 0x207 }), "{version}");
    assert!(version.to_string().contains("2.07"), "{version}");
    for (offset, value) in
        [(0x248, &u32::MAX.to_le_bytes()[..]), (0x24c, &[0xff; 4]), (0x1f1, &[9])]
    {
        let error = with(offset, value);
        assert!(matches!(error, BzImageError::Truncated { what: "the payload", .. }), "{error}");
    }
    let error = with(0x24c, &[0; 4]);
    assert!(matches!(error, BzImageError::UnknownCompression { .. }), "{error}");
    let error = with(0x410, b"\x7fELF");
    assert!(matches!(error, BzImageError::UnknownCompression { .. }), "{error}");
    #[cfg(feature = "gzip")]
    {
        let not_elf = self::error(&kernel(pack(Compression::Gzip, &[7; 1000])), 32);
        assert!(matches!(not_elf, BzImageError::NotElf), "{not_elf}");
    }
}

#[test]
fn cut_at_any_byte_it_is_refused() {
    let file = BzImage::new(pack(Compression::Bzip2, &Elf::default().build())).build();
    // The 100 bytes behind the payload are not needed.
    for len in 1..file.len() - 100 {
        let error = load(&Kernel::bytes(file[..len].to_vec()), &memory(32)).unwrap_err();
        match error {
            LoadError::Image(_) => assert!(len < 0x206, "{len}"),
            LoadError::BzImage { source: BzImageError::Truncated { .. }, .. } => {}
            other => panic!("cut at {len}: {other:?}"),
        }
    }
}

/// A distribution's kernel, named by the environment: `SPARKLER_KERNEL=/boot/vmlinuz-…`.
#[test]
#[ignore = "needs a kernel: set SPARKLER_KERNEL to its path and run with --ignored"]
fn a_stock_kernel_loads() {
    let path = std::env::var_os("SPARKLER_KERNEL").expect("SPARKLER_KERNEL");
    let memory = memory(512);
    for (protocol, expected) in [(None, Protocol::Linux64), (Some(Protocol::Pvh), Protocol::Pvh)] {
        let mut kernel = Kernel::file(&path).unwrap();
        if let Some(protocol) = protocol {
            kernel = kernel.with_protocol(protocol);
        }
        let begin = Instant::now();
        let entry = load(&kernel, &memory).unwrap();
        println!("{entry:x?} after {:?}", begin.elapsed());
        assert_eq!(entry.protocol, expected);
        assert_ne!(bytes(&memory, entry.instruction_pointer.0, 16), [0; 16]);
    }
}
