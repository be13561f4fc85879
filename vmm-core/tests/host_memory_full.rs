//! Guest memory in a file on a file system that is full, made by mounting a small one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs::File;
use std::path::Path;
use std::process::Command;

use sparkler::{BuildError, Kernel, MemoryBacking, MemoryError, MemorySize, Vm};

/// A file system of its own, unmounted when dropped.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount(&["-t", "tmpfs", "-o", "size=4m", "none"], directory.path());
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
fn memory_for_which_there_is_no_room_is_refused_in_advance() {
    let small = SmallFileSystem::new();
    let path = small.0.path().join("memory");
    let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
    let size = MemorySize::mib(16);
    file.set_len(size.as_bytes()).unwrap();
    let backing = MemoryBacking::file(file.into(), 0).prefault(true);
    let kernel = Kernel::bytes(sparkler_guest::ELF);
    let builder = Vm::builder().memory(size).memory_backing(backing).kernel(kernel);
    let BuildError::GuestMemory(error) = builder.build().unwrap_err() else { panic!() };
    assert!(matches!(error, MemoryError::NoRoomInFile { .. }), "{error:?}");
    // The region of memory above 1 MiB may be one of its own.
    assert!(error.to_string().starts_with("no room for"));
}
