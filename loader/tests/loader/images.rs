//! Images from files, descriptors and bytes; what is no image at all.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::Path;

use crate::support::{Elf, MIB, bytes, chain, load, memory};
use sparkler_loader::{ImageError, Initrd, Kernel, LoadError};

fn kernel_error(path: &Path) -> ImageError {
    let error = Kernel::file(path).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "names its path: {error}");
    error
}

#[test]
fn mistakes_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let error = kernel_error(&dir.path().join("missing"));
    assert!(matches!(error, ImageError::Open { .. }) && chain(&error).contains("No such file"));
    let error = kernel_error(dir.path());
    assert!(matches!(error, ImageError::NotAFile { kind: "a directory", .. }), "{error}");
    let error = kernel_error(&path("empty", b""));
    assert!(matches!(error, ImageError::Empty { .. }), "{error}");
    let contents: [(&str, &[u8], &str); 6] = [
        ("text", b"#!/bin/sh\nexec true\n", "a text file"),
        ("one", b"\x7f", "of an unknown format"),
        ("zeros", &[0; 4096], "of an unknown format"),
        ("gzip", &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0], "a gzip file"),
        ("cpio", b"070701000002D1", "a cpio archive (an initrd?)"),
        ("almost", &[0x7f; 0x205], "of an unknown format"),
    ];
    for (name, content, what) in contents {
        let error = kernel_error(&path(name, content));
        assert!(matches!(error, ImageError::NotAKernel { found, .. } if found == what), "{error}");
    }
}

#[test]
fn special_files_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    let status = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(status.success());
    for (path, what) in [(fifo.as_path(), "a pipe"), (Path::new("/dev/zero"), "a character device")]
    {
        let error = kernel_error(path);
        assert!(matches!(error, ImageError::NotAFile { kind, .. } if kind == what), "{error}");
        assert!(matches!(Initrd::file(path), Err(ImageError::NotAFile { .. })));
    }
    let (reader, _writer) = std::io::pipe().unwrap();
    let error = Kernel::fd(reader.into()).unwrap_err();
    assert!(matches!(error, ImageError::NotAFile { kind: "a pipe", .. }), "{error}");
    let zero: OwnedFd = fs::File::open("/dev/zero").unwrap().into();
    assert!(matches!(Initrd::fd(zero), Err(ImageError::NotAFile { .. })));
}

#[test]
fn a_descriptor_keeps_its_offset_and_must_be_readable() {
    let mut file = tempfile::tempfile().unwrap();
    let elf = Elf::default();
    std::io::Write::write_all(&mut file, &elf.build()).unwrap();
    file.seek(SeekFrom::Start(17)).unwrap();
    let kernel = Kernel::fd(file.try_clone().unwrap().into()).unwrap();
    for _ in 0..2 {
        let memory = memory(32);
        load(&kernel, &memory).unwrap();
        assert_eq!(bytes(&memory, 16 * MIB, 5000), elf.segments[0].data);
        assert_eq!(file.stream_position().unwrap(), 17);
    }
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, elf.build()).unwrap();
    let write_only = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let error = Kernel::fd(write_only.into()).unwrap_err();
    assert!(matches!(error, ImageError::Read { .. }), "{error}");
}

#[test]
fn one_kernel_loads_from_many_threads_at_once() {
    let path = tempfile::NamedTempFile::new().unwrap();
    let mut elf = Elf::default();
    elf.segments[0].data = (0..2 * MIB as u32 / 4).flat_map(u32::to_le_bytes).collect();
    elf.segments[0].memory_size = 2 * MIB;
    elf.segments[1].address = 18 * MIB;
    fs::write(&path, elf.build()).unwrap();
    let kernel = Kernel::file(path.path()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let memory = memory(32);
                load(&kernel, &memory).unwrap();
                assert!(bytes(&memory, 16 * MIB, 2 << 20) == elf.segments[0].data);
            });
        }
    });
}

#[test]
fn a_file_that_shrinks_is_an_error() {
    let path = tempfile::NamedTempFile::new().unwrap();
    fs::write(&path, Elf::default().build()).unwrap();
    let kernel = Kernel::file(path.path()).unwrap();
    fs::write(&path, b"\x7fELF").unwrap();
    let error = load(&kernel, &memory(32)).unwrap_err();
    assert!(matches!(error, LoadError::Image(_) | LoadError::Elf { .. }), "{error:?}");
}

#[test]
fn bytes_are_looked_at_when_loaded() {
    let error = load(&Kernel::bytes(b"hello".as_slice()), &memory(4)).unwrap_err();
    assert!(matches!(error, LoadError::Image(ImageError::NotAKernel { .. })), "{error}");
    let error = load(&Kernel::bytes(Vec::new()), &memory(4)).unwrap_err();
    assert!(matches!(error, LoadError::Image(ImageError::Empty { .. })), "{error}");
}
