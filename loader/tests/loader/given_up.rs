//! Loading that nobody waits for any more.

use std::cell::Cell;
use std::error::Error;
use std::io;
use std::os::fd::BorrowedFd;

use sparkler_loader::{BootConfig, Cmdline, Initrd, Kernel, LoadError, MapPages};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::support::{BzImage, Elf, MIB, bytes, memory};

/// Gives up when it has been asked so many times.
struct Patience(Cell<u32>);

impl MapPages for Patience {
    fn map(
        &self,
        _file: BorrowedFd<'_>,
        _offset: u64,
        _address: GuestAddress,
        _length: u64,
    ) -> io::Result<bool> {
        Ok(false)
    }

    fn is_given_up(&self) -> bool {
        let left = self.0.get().checked_sub(1);
        self.0.set(left.unwrap_or(0));
        left.is_none()
    }
}

fn load(
    kernel: &Kernel,
    initrd: Option<&Initrd>,
    memory: &GuestMemoryMmap,
    patience: u32,
) -> Result<(), LoadError> {
    let cmdline = Cmdline::new("").unwrap();
    let config = BootConfig { cmdline: &cmdline, initrd, rsdp: None, reserved: &[] };
    let patience = Patience(Cell::new(patience));
    kernel.load_with(memory, &config, Some(&patience)).map(drop)
}

#[track_caller]
fn assert_given_up(result: Result<(), LoadError>) {
    let error = result.unwrap_err();
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let cause = cause.downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::Interrupted, "{error}");
}

#[test]
fn a_kernel_that_is_copied_or_unpacked_is_left() {
    // As two blocks of LZ4, each of them one literal.
    let elf = Elf::default().build();
    let mut payload = 0x184c_2102u32.to_le_bytes().to_vec();
    for part in elf.chunks(elf.len().div_ceil(2)) {
        let block = lz4_flex::block::compress(part);
        payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
        payload.extend(block);
    }
    payload.extend(u32::try_from(elf.len()).unwrap().to_le_bytes());
    for image in [elf, BzImage::new(payload).build()] {
        let kernel = Kernel::bytes(image);
        assert_given_up(load(&kernel, None, &memory(32), 0));
        load(&kernel, None, &memory(32), 100).unwrap();
    }
}

#[test]
fn an_initrd_is_left_in_the_middle() {
    const SIZE: u64 = 40 * MIB;
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &vec![7; SIZE as usize], 0).unwrap();
    let file = Initrd::fd(file.into()).unwrap();
    let kernel = Kernel::bytes(Elf::default().build());
    for initrd in [Initrd::bytes(vec![7; SIZE as usize]), file] {
        let memory = memory(64);
        // At the end of memory.
        let ends = || [0, SIZE - 1].map(|at| bytes(&memory, 64 * MIB - SIZE + at, 1)[0]);
        assert_given_up(load(&kernel, Some(&initrd), &memory, 3));
        assert_eq!(ends(), [7, 0]);
        load(&kernel, Some(&initrd), &memory, 100).unwrap();
        assert_eq!(ends(), [7, 7]);
    }
}
