//! Kernels that are mapped instead of copied.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use sparkler_loader::{BootConfig, BzImageError, Cmdline, Entry, ImageError, Kernel};
use sparkler_loader::{LoadError, MapPages};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::{
    BzImage, DONE, Elf, IGNORED, MIB, PAGE, Segment, bytes, memory, with_small_files,
};

/// Does with a copy what else a mapping does, and keeps account of it.
struct Pages<'a> {
    memory: &'a GuestMemoryMmap,
    can: bool,
    mapped: RefCell<Vec<(u64, u64)>>,
}

impl MapPages for Pages<'_> {
    fn map(
        &self,
        file: BorrowedFd<'_>,
        offset: u64,
        address: GuestAddress,
        length: u64,
    ) -> io::Result<bool> {
        assert_eq!((offset | address.0 | length) % PAGE, 0);
        if !self.can {
            return Ok(false);
        }
        let mut content = vec![0; length as usize];
        File::from(file.try_clone_to_owned()?).read_exact_at(&mut content, offset)?;
        self.memory.write_slice(&content, address).unwrap();
        self.mapped.borrow_mut().push((address.0, length));
        Ok(true)
    }
}

/// Two segments that begin and end within pages. The first has file and memory in step, the other has not.
pub(crate) fn elf() -> Elf {
    let data = |seed: u64| (0..300_000u64).map(|i| (i * seed % 251) as u8).collect::<Vec<_>>();
    // The file has the segments one behind the other, after 64 bytes and two headers of 56.
    let first = 16 * MIB + 64 + 2 * 56;
    let segment = |address, data| Segment { address, data, memory_size: MIB / 2 };
    let segments = vec![segment(first, data(7)), segment(18 * MIB, data(11))];
    Elf { entry: first, segments, ..Elf::default() }
}

/// Packed, with a command line of at most 100 bytes.
pub(crate) fn lz4_bzimage(elf: &Elf) -> Vec<u8> {
    lz4_packed(&elf.build())
}

/// The same of any bytes.
pub(crate) fn lz4_packed(unpacked: &[u8]) -> Vec<u8> {
    let mut frame = 0x184c_2102u32.to_le_bytes().to_vec();
    let block = lz4_flex::block::compress(unpacked);
    frame.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
    frame.extend(block);
    frame.extend(u32::try_from(unpacked.len()).unwrap().to_le_bytes());
    BzImage { cmdline_size: 100, ..BzImage::new(frame) }.build()
}

fn load(kernel: &Kernel, memory: &GuestMemoryMmap, can: bool) -> (Entry, Vec<(u64, u64)>) {
    let cmdline = Cmdline::new("").unwrap();
    let config = BootConfig { cmdline: &cmdline, initrd: None, rsdp: None, reserved: &[] };
    let pages = Pages { memory, can, mapped: RefCell::default() };
    let entry = kernel.load_with(memory, &config, Some(&pages)).unwrap();
    (entry, pages.mapped.into_inner())
}

/// Loads it, and compares with what copying gives.
pub(crate) fn check(kernel: &Kernel, can: bool, expected: &[(u64, u64)]) {
    let [plain, memory] = [32, 32].map(memory);
    let (entry, none) = load(&Kernel::bytes(elf().build()), &plain, true);
    assert_eq!(none, [], "bytes cannot be mapped");
    let (mapped_entry, mapped) = load(kernel, &memory, can);
    assert_eq!(mapped, expected);
    assert_eq!(mapped_entry.instruction_pointer, entry.instruction_pointer);
    let everything = |memory| bytes(memory, MIB, 31 << 20);
    assert!(everything(&memory) == everything(&plain));
}

/// The whole pages of the first segment.
pub(crate) const WHOLE: [(u64, u64); 1] = [(16 * MIB + PAGE, 72 * PAGE)];

#[test]
fn whole_pages_of_a_shared_kernel_are_mapped_and_the_rest_is_copied() {
    let shared = Kernel::bytes(elf().build()).shared().unwrap();
    check(&shared, true, &WHOLE);
    check(&shared.clone(), true, &WHOLE);
    check(&shared, false, &[]);
    check(&shared.shared().unwrap(), true, &WHOLE);
}

#[test]
fn a_shared_bzimage_is_unpacked_once_and_keeps_its_header() {
    let image = lz4_bzimage(&elf());
    check(&Kernel::bytes(image.clone()), true, &[]);
    let shared = Kernel::bytes(image).shared().unwrap();
    check(&shared, true, &WHOLE);
    let memory = memory(32);
    load(&shared, &memory, true);
    assert_eq!(bytes(&memory, 0x7000 + 0x202, 4), b"HdrS");
    let long = Cmdline::new(&"x".repeat(101)).unwrap();
    let config = BootConfig { cmdline: &long, initrd: None, rsdp: None, reserved: &[] };
    shared.load(&memory, &config).unwrap_err();
}

#[test]
fn a_file_is_mapped_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, elf().build()).unwrap();
    let fd = || OwnedFd::from(File::open(&path).unwrap());
    check(&Kernel::file(&path).unwrap(), true, &[]);
    check(&Kernel::fd(fd()).unwrap(), true, &[]);
    check(&Kernel::file(&path).unwrap().mapped(), true, &WHOLE);
    check(&Kernel::fd(fd()).unwrap().mapped(), true, &WHOLE);
}

#[test]
fn a_shared_kernel_outlives_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vmlinux");
    fs::write(&path, elf().build()).unwrap();
    let shared = Kernel::file(&path).unwrap().shared().unwrap();
    File::create(&path).unwrap();
    check(&shared, true, &WHOLE);
}

#[test]
fn a_lack_of_memory_is_told_from_a_broken_image() {
    let name = "mapped::a_lack_of_memory_is_told_from_a_broken_image";
    let folder = tempfile::tempdir().unwrap();
    let status = with_small_files(name, IGNORED, folder.path(), |_| {
        for image in [elf().build(), lz4_bzimage(&elf())] {
            let full = Kernel::bytes(image).shared().unwrap_err();
            let LoadError::Share { source, .. } = &full else { panic!("{full:?}") };
            assert_eq!(source.raw_os_error(), Some(libc::EFBIG));
        }
    });
    assert_eq!(status.code(), Some(DONE));
}

#[test]
fn what_cannot_be_shared_is_told() {
    let unknown = Kernel::bytes(BzImage::new(vec![0; 100]).build()).shared().unwrap_err();
    let is_said = matches!(
        unknown,
        LoadError::BzImage { source: BzImageError::UnknownCompression { .. }, .. }
    );
    assert!(is_said, "{unknown:?}");
    // The payload's one block states another length.
    let mut broken = lz4_bzimage(&elf());
    let magic = broken.windows(4).position(|bytes| bytes == [0x02, 0x21, 0x4c, 0x18]).unwrap();
    broken[magic + 4..][..4].fill(0xff);
    let broken = Kernel::bytes(broken).shared().unwrap_err();
    let is_said = matches!(broken, LoadError::BzImage { source: BzImageError::Payload { .. }, .. });
    assert!(is_said, "{broken:?}");
    let other = Kernel::bytes(&b"no kernel"[..]).shared().unwrap_err();
    assert!(matches!(other, LoadError::Image(ImageError::NotAKernel { .. })), "{other:?}");
}
