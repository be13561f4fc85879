//! A full disk, made by mounting a small file system.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod block_common;

use std::path::Path;
use std::process::Command;

use block_common::*;
use sparkler_devices::virtio::block::{Disk, EngineKind};

/// A file system of its own, unmounted when dropped.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn new(options: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", options, "none"], directory.path());
        Self(directory)
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

fn mount(args: &[&str], at: &Path) {
    assert!(Command::new("mount").args(args).arg(at).status().unwrap().success());
}

#[test]
#[ignore = "needs root"]
fn a_full_disk_is_the_guests_io_error_until_there_is_room_again() {
    for kind in [EngineKind::Sync, EngineKind::IoUring] {
        let small = SmallFileSystem::new("size=256k");
        let path = small.0.path().join("disk.img");
        std::fs::File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let mut guest = Guest::new(Disk::open(&path).unwrap().engine(kind).unwrap());
        let answers: Vec<u8> =
            (0..16).map(|part| guest.write(part * 128, &[1; 64 << 10])).collect();
        assert_eq!((answers[0], answers[15]), (OK, IOERR), "{kind:?}: {answers:?}");
        assert_eq!(guest.read(0, 64 << 10).data, [1; 64 << 10]);
        mount(&["-o", "remount,size=4m"], small.0.path());
        assert_eq!(guest.write(15 * 128, &[2; 64 << 10]), OK, "{kind:?}");
        assert_eq!(guest.read(15 * 128, 64 << 10).data, [2; 64 << 10]);
    }
}
