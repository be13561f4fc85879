//! The initrd of a guest inside the lab: our init, and the modules that it loads.

use anyhow::{Context, Result};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::image;
use crate::setup::Kernel;
use crate::step;

/// In the order in which they are loaded: what one needs comes before it.
const MODULES: [&str; 10] = [
    "virtio_ring",
    "virtio",
    "virtio_mmio",
    "virtio_blk",
    "virtio-rng",
    "failover",
    "net_failover",
    "virtio_net",
    "button",
    "evdev",
];

/// Packs it anew into `cache`.
pub(super) fn pack(cache: &Path, init: &Path, kernel: &Kernel) -> Result<PathBuf> {
    let scratch = tempfile::tempdir_in(cache)?;
    let root = scratch.path().join("root");
    fs::create_dir_all(root.join("modules"))?;
    fs::copy(init, root.join("init"))?;
    for (position, module) in MODULES.iter().enumerate() {
        // A module that is not there is built in.
        if let Some(file) = find(&kernel.modules, module)? {
            unpack(&file, &root.join(format!("modules/{position:02}-{module}")))?;
        }
    }
    let packed = scratch.path().join("initrd");
    image::pack_cpio(&root, &packed)?;
    // A rename, so that a machine that boots from it just now sees the old or the new one.
    let initrd = cache.join("guest-initrd.cpio");
    fs::rename(packed, &initrd)?;
    Ok(initrd)
}

/// Finds the file of a module, packed or not, somewhere below `folder`.
fn find(folder: &Path, module: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_it = name.to_str().and_then(|name| name.strip_prefix(module));
        if entry.file_type()?.is_dir() {
            if let Some(found) = find(&entry.path(), module)? {
                return Ok(Some(found));
            }
        } else if is_it.is_some_and(|rest| rest == ".ko" || rest.starts_with(".ko.")) {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}

/// Newer Debian packs its modules, and not every kernel unpacks them by itself.
fn unpack(module: &Path, target: &Path) -> Result<()> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        fs::copy(module, target).with_context(|| module.display().to_string())?;
        return Ok(());
    }
    let mut unpack = Command::new("xz");
    unpack.args(["--decompress", "--stdout"]).arg(module).stdout(File::create(target)?);
    let status = unpack.status().context("cannot run xz")?;
    anyhow::ensure!(status.success(), "`{}` failed ({status})", step::describe(&unpack));
    Ok(())
}
