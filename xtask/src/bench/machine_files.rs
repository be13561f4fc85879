//! The kernels, initrds and disks of the machines that are booted.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::kernel::MicrovmKernel;
use crate::lab::{GUEST_INITRD, GUEST_KERNEL, Guest, Run, Shared, pack_cpio};
use crate::{setup, step};

/// Where they are in the lab.
const LAB_FOLDER: &str = "/root/boot";

/// Room for an init and the folders that a kernel mounts upon.
const DISK_SIZE: &str = "16M";

/// What unpacks a kernel: how its payload begins, and with which program of which package.
const UNPACKERS: [(&[u8], &str, &str); 5] = [
    (&[0x1f, 0x8b], "gzip", "gzip"),
    (&[0x02, 0x21, 0x4c, 0x18], "lz4", "lz4"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "xz", "xz-utils"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "zstd", "zstd"),
    (b"BZh", "bzip2", "bzip2"),
];

pub(crate) struct MachineFiles {
    microvm_kernel: MicrovmKernel,
    stock_kernel: PathBuf,
    /// Debian's kernel, unpacked.
    stock_vmlinux: PathBuf,
    /// Nothing but init.
    quick_initrd: PathBuf,
    /// Init, and modules for the stock kernel.
    guest_initrd: PathBuf,
    /// A root file system with nothing but init.
    disk: PathBuf,
}

impl MachineFiles {
    /// Makes what is missing.
    pub(crate) fn prepare(guest: &Guest) -> Result<Self> {
        let folder = guest.cache().join("boot");
        let root = folder.join("root");
        for path in ["dev", "proc", "sys", "run", "tmp", "new-root"] {
            fs::create_dir_all(root.join(path))?;
        }
        fs::copy(&guest.init, root.join("init"))?;
        let quick_initrd = folder.join("initrd.cpio");
        pack_cpio(&root, &quick_initrd)?;
        let disk = folder.join("disk.ext4");
        if disk.exists() {
            fs::remove_file(&disk)?;
        }
        let mut mkfs = Command::new(setup::find_program("mkfs.ext4").context("no mkfs.ext4")?);
        mkfs.args(["-q", "-m", "0", "-d"]).arg(&root).arg(&disk).arg(DISK_SIZE);
        step::run("making a root disk", &mut mkfs)?;
        Ok(Self {
            microvm_kernel: MicrovmKernel::prepare(guest.cache())?,
            stock_kernel: guest.kernel.vmlinuz.clone(),
            stock_vmlinux: unpacked(&guest.kernel.vmlinuz, &folder)?,
            quick_initrd,
            guest_initrd: guest.initrd.clone(),
            disk,
        })
    }

    /// Each file by the variable that names it.
    fn named(&self) -> [(&'static str, PathBuf); 4] {
        [
            ("MICROVM_KERNEL", self.microvm_kernel.vmlinux()),
            ("STOCK_VMLINUX", self.stock_vmlinux.clone()),
            ("QUICK_INITRD", self.quick_initrd.clone()),
            ("BOOT_DISK", self.disk.clone()),
        ]
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let stock = [("STOCK_KERNEL", &self.stock_kernel), ("GUEST_INITRD", &self.guest_initrd)];
        self.named().into_iter().chain(stock.map(|(name, file)| (name, file.clone())))
    }

    /// Takes them to the lab, which has the stock kernel and its initrd already.
    pub(crate) fn add_to(&self, run: &mut Run) {
        for (name, host) in self.named() {
            let guest = Path::new(LAB_FOLDER).join(name);
            run.env.push((name.to_owned(), guest.display().to_string()));
            run.files.push(Shared { host, guest });
        }
        for (name, guest) in [("STOCK_KERNEL", GUEST_KERNEL), ("GUEST_INITRD", GUEST_INITRD)] {
            run.env.push((name.to_owned(), guest.to_owned()));
        }
    }

    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        vec![("kernel for microVMs", self.microvm_kernel.package.clone())]
    }
}

/// The ELF file within a bzImage, kept in `folder`.
fn unpacked(bzimage: &Path, folder: &Path) -> Result<PathBuf> {
    let name = bzimage.file_name().context("a kernel without a name")?;
    let vmlinux = folder.join(name).with_extension("vmlinux");
    if vmlinux.is_file() {
        return Ok(vmlinux);
    }
    let image = fs::read(bzimage).with_context(|| bzimage.display().to_string())?;
    let payload = payload(&image).context("the stock kernel is no bzImage")?;
    let packer = UNPACKERS.iter().find(|(magic, ..)| payload.starts_with(magic));
    let (_, program, package) = packer.context("the stock kernel is packed in an unknown way")?;
    setup::debian_packages(&[(program, package)])?;
    // Only gzip has the length of the unpacked kernel in its own format: behind others it is put.
    let end = if *program == "gzip" { 0 } else { 4 };
    let scratch = tempfile::tempdir_in(folder)?;
    let packed = scratch.path().join("packed");
    fs::write(&packed, payload.get(..payload.len().saturating_sub(end)).unwrap_or_default())?;
    let made = scratch.path().join("vmlinux");
    let mut unpack = Command::new(program);
    unpack.args(["-d", "-c"]).stdin(File::open(&packed)?).stdout(File::create(&made)?);
    let status = unpack.stderr(Stdio::inherit()).status()?;
    ensure!(status.success(), "`{}` failed ({status})", step::describe(&unpack));
    let mut magic = [0; 4];
    File::open(&made)?.read_exact(&mut magic)?;
    ensure!(&magic == b"\x7fELF", "the stock kernel holds no ELF file");
    fs::rename(made, &vmlinux)?;
    Ok(vmlinux)
}

/// The packed kernel, where the boot protocol's header says: `payload_offset` and `payload_length`,
/// counted from the end of the real-mode code.
fn payload(image: &[u8]) -> Option<&[u8]> {
    let number = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?));
    let sectors = usize::from(*image.get(0x1f1)?);
    let setup = (if sectors == 0 { 4 } else { sectors } + 1) * 512;
    let start = setup.checked_add(usize::try_from(number(0x248)?).ok()?)?;
    let length = usize::try_from(number(0x24c)?).ok()?;
    (number(0x202)? == 0x5372_6448).then_some(())?; // "HdrS"
    image.get(start..start.checked_add(length)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_where_the_header_says() {
        let mut image = vec![0; 4096];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&4u32.to_le_bytes());
        image[1040..1044].copy_from_slice(b"data");
        assert_eq!(payload(&image), Some(&b"data"[..]));
        image[0x202] = 0;
        assert_eq!(payload(&image), None);
        assert_eq!(payload(b"short"), None);
    }
}
