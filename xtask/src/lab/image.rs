//! What the lab boots from: Debian's kernel, an initramfs that finds the disk, and the disk.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cargo::root;
use crate::setup::{self, Kernel};
use crate::step;

/// Sparse, so that only what is used takes space.
const DISK_SIZE: &str = "4G";

/// Modules that must be there before the disk can be mounted.
const BOOT_MODULES: [&str; 2] = ["virtio_pci", "virtio_blk"];

/// The files that QEMU is started with. The same for every run; nothing ever writes to them.
pub(crate) struct Image {
    /// Debian's bzImage, unmodified; `/boot/vmlinuz` inside.
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) disk: PathBuf,
}

impl Image {
    /// The image of a kernel package and of the scripts as they are, made unless it is there.
    pub(crate) fn prepare(cache: &Path, kernel: &Kernel) -> Result<Self> {
        let sources = Sources::find(kernel)?;
        let folder = cache.join(format!("image-{:016x}", sources.key()?));
        if !folder.is_dir() {
            for entry in fs::read_dir(cache)?.filter_map(Result::ok) {
                if entry.file_name().to_string_lossy().starts_with("image-") {
                    fs::remove_dir_all(entry.path())?;
                }
            }
            let scratch = tempfile::tempdir_in(cache)?;
            sources.build(scratch.path())?;
            fs::rename(scratch.keep(), &folder)?;
        }
        Ok(Self {
            kernel: kernel.vmlinuz.clone(),
            initramfs: folder.join("initramfs.cpio"),
            disk: folder.join("disk.ext4"),
        })
    }
}

/// Packs a folder into an initramfs, owned by root inside.
pub(crate) fn pack_cpio(folder: &Path, archive: &Path) -> Result<()> {
    let mut pack = Command::new("sh");
    let script = r#"find . | LC_ALL=C sort | cpio --quiet -o -H newc -R 0:0 -F "$0""#;
    step::run("packing an initramfs", pack.current_dir(folder).args(["-c", script]).arg(archive))?;
    Ok(())
}

/// What an image is made of.
struct Sources<'a> {
    kernel: &'a Kernel,
    busybox: PathBuf,
    scripts: PathBuf,
}

impl<'a> Sources<'a> {
    fn find(kernel: &'a Kernel) -> Result<Self> {
        let busybox = setup::find_program("busybox").context("busybox is missing")?;
        Ok(Self { kernel, busybox, scripts: root().join("lab") })
    }

    /// Changes whenever an image built from these would: a stale one is never found.
    fn key(&self) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        include_str!("image.rs").hash(&mut hasher);
        // The folder carries the package's version.
        self.kernel.vmlinuz.hash(&mut hasher);
        for file in
            [self.busybox.clone(), self.scripts.join("host.sh"), self.scripts.join("initramfs.sh")]
        {
            fs::read(&file).with_context(|| file.display().to_string())?.hash(&mut hasher);
        }
        Ok(hasher.finish())
    }

    fn build(&self, folder: &Path) -> Result<()> {
        let disk = folder.join("disk");
        self.populate_disk(&disk)?;
        let initramfs = folder.join("initramfs");
        self.populate_initramfs(&initramfs, &disk)?;
        pack_cpio(&initramfs, &folder.join("initramfs.cpio"))?;

        let mut mkfs = Command::new(setup::find_program("mkfs.ext4").context("no mkfs.ext4")?);
        mkfs.args(["-q", "-m", "0", "-E", "root_owner=0:0", "-d"]);
        mkfs.arg(&disk).arg(folder.join("disk.ext4")).arg(DISK_SIZE);
        step::run("making the lab's disk", &mut mkfs)?;
        fs::remove_dir_all(disk)?;
        fs::remove_dir_all(initramfs)?;
        Ok(())
    }

    /// A host of the smallest kind: busybox, the kernel with all its modules, our script.
    fn populate_disk(&self, disk: &Path) -> Result<()> {
        for path in [
            "bin",
            "sbin",
            "usr/bin",
            "usr/sbin",
            "usr/local/bin",
            "lib/modules",
            "boot",
            "lab",
            "etc",
            "proc",
            "sys",
            "dev",
            "run",
            "root",
            "results",
            "tmp",
            "var/tmp",
        ] {
            fs::create_dir_all(disk.join(path))?;
        }
        for path in ["tmp", "var/tmp"] {
            fs::set_permissions(disk.join(path), fs::Permissions::from_mode(0o1777))?;
        }
        fs::copy(&self.busybox, disk.join("bin/busybox"))?;
        let applets = Command::new(&self.busybox).arg("--list-full").output()?.stdout;
        for applet in String::from_utf8_lossy(&applets).lines() {
            let link = disk.join(applet);
            if !link.exists() && link.parent().is_some_and(Path::is_dir) {
                symlink("/bin/busybox", link)?;
            }
        }
        // Whom passt becomes if root starts it is "nobody".
        let users = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
        fs::write(disk.join("etc/passwd"), users)?;
        fs::write(disk.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
        fs::write(disk.join("etc/hosts"), "127.0.0.1 localhost lab\n::1 localhost\n")?;
        install(&self.scripts.join("host.sh"), &disk.join("lab/host.sh"))?;
        fs::copy(&self.kernel.vmlinuz, disk.join("boot/vmlinuz"))?;
        self.populate_modules(disk)
    }

    fn populate_modules(&self, disk: &Path) -> Result<()> {
        let modules = disk.join("lib/modules");
        let mut copy = Command::new("cp");
        step::run("copying modules", copy.arg("-a").arg(&self.kernel.modules).arg(&modules))?;
        // Newer Debian packs its modules; busybox is surer of plain ones.
        let mut unpack = Command::new("find");
        unpack.arg(&modules).args(["-name", "*.ko.xz", "-exec"]);
        step::run("unpacking modules", unpack.arg(&self.busybox).args(["unxz", "{}", "+"]))?;
        let mut index = Command::new(&self.busybox);
        index.args(["depmod", "-b"]).arg(disk).arg(&self.kernel.release);
        step::run("indexing modules", &mut index)?;
        Ok(())
    }

    fn populate_initramfs(&self, initramfs: &Path, disk: &Path) -> Result<()> {
        let modules = Path::new("lib/modules").join(&self.kernel.release);
        fs::create_dir_all(initramfs.join("bin"))?;
        fs::create_dir_all(initramfs.join(&modules))?;
        fs::copy(&self.busybox, initramfs.join("bin/busybox"))?;
        install(&self.scripts.join("initramfs.sh"), &initramfs.join("init"))?;

        let index = fs::read_to_string(disk.join(&modules).join("modules.dep"))?;
        fs::write(initramfs.join(&modules).join("modules.dep"), &index)?;
        for file in with_dependencies(&index, &BOOT_MODULES) {
            let file = modules.join(file);
            if let Some(parent) = file.parent() {
                fs::create_dir_all(initramfs.join(parent))?;
            }
            fs::copy(disk.join(&file), initramfs.join(&file))?;
        }
        Ok(())
    }
}

fn install(script: &Path, target: &Path) -> Result<()> {
    fs::copy(script, target).with_context(|| script.display().to_string())?;
    fs::set_permissions(target, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

/// The files of these modules and of all that they need, by the index that `depmod` wrote.
/// A module that the kernel has built in is in no index and needs no file.
fn with_dependencies<'a>(index: &'a str, names: &[&str]) -> BTreeSet<&'a str> {
    let entries: Vec<(&str, &str)> =
        index.lines().filter_map(|line| line.split_once(':')).collect();
    let stem = |file: &str| {
        let name = file.rsplit('/').next().unwrap_or(file);
        name.split('.').next().unwrap_or(name).replace('-', "_")
    };
    let mut open: Vec<&str> = entries
        .iter()
        .filter(|(file, _)| names.contains(&stem(file).as_str()))
        .map(|(file, _)| *file)
        .collect();
    let mut found = BTreeSet::new();
    while let Some(file) = open.pop() {
        if found.insert(file) {
            let needs = entries.iter().filter(|(name, _)| *name == file).map(|(_, needs)| *needs);
            open.extend(needs.flat_map(str::split_whitespace));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_followed_to_the_end() {
        let index = "k/virtio-pci.ko: k/ring.ko\nk/ring.ko: k/virtio.ko\nk/virtio.ko:\nk/tun.ko:\n";
        let found: Vec<_> =
            with_dependencies(index, &["virtio_pci", "built_in"]).into_iter().collect();
        assert_eq!(found, ["k/ring.ko", "k/virtio-pci.ko", "k/virtio.ko"]);
    }
}
