//! What a disk's file looks like. Disks are raw, whatever they look like, for a guest could make its disk
//! look like anything; but a user who downloaded another format wants to be told.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// What these formats begin with, their names, and how a raw disk is made of them.
const FORMATS: [(&[u8], &str, &str); 8] = [
    (b"QFI\xfb", "a qcow2 image", "qemu-img convert -O raw"),
    (b"KDMV", "a VMDK image", "qemu-img convert -O raw"),
    (b"vhdxfile", "a VHDX image", "qemu-img convert -O raw"),
    (b"<<< Oracle VM VirtualBox Disk Image >>>", "a VDI image", "qemu-img convert -O raw"),
    (b"\xfd7zXZ\0", "an xz file", "unxz"),
    (b"\x1f\x8b\x08", "a gzip file", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unzstd"),
    (b"BZh", "a bzip2 file", "bunzip2"),
];

/// What to say of the file if it does not look like a raw disk.
pub(crate) fn doubt(path: &Path) -> Option<String> {
    let start = start(path)?;
    let (_, name, way) = FORMATS.iter().find(|(magic, ..)| start.starts_with(magic))?;
    let path = path.display();
    Some(format!(
        "the disk {path} begins like {name} and is taken as raw: `{way}` makes a raw disk of one"
    ))
}

/// The first bytes of a file.
pub(crate) fn start(path: &Path) -> Option<Vec<u8>> {
    // Whatever goes wrong here goes wrong again when the file is opened for use. A pipe must not be waited for.
    path.metadata().ok().filter(|metadata| metadata.is_file())?;
    let mut buffer = vec![0; 64];
    let read = File::open(path).ok()?.read_at(&mut buffer, 0).ok()?;
    buffer.truncate(read);
    Some(buffer)
}
