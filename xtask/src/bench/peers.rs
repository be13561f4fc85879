//! The other monitors: QEMU's microvm, alioth, and those that the environment names.

use anyhow::{Context, Result};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::lab::{Run, Shared, with_libraries};
use crate::step;

/// What QEMU's microvm machine reads besides its program.
const FIRMWARE: [&str; 5] = [
    "/usr/share/seabios/bios-microvm.bin",
    "/usr/share/qemu/bios-microvm.bin",
    "/usr/share/qemu/qboot.rom",
    "/usr/share/qemu/linuxboot_dma.bin",
    "/usr/share/qemu/pvh.bin",
];

/// Monitors that take part if these variables name their binaries.
const NAMED: [&str; 3] = ["FIRECRACKER", "CLOUD_HYPERVISOR", "CROSVM"];

/// Where alioth's binary is named.
const ALIOTH: &str = "ALIOTH";

pub(crate) struct Peers {
    /// Their variables and their binaries.
    binaries: Vec<(&'static str, PathBuf)>,
    gaps: Vec<(&'static str, String)>,
}

impl Peers {
    /// Installs what is missing. QEMU is there already.
    pub(crate) fn prepare(cache: &Path) -> Result<Self> {
        let (mut binaries, mut gaps) = (Vec::new(), Vec::new());
        match alioth(cache) {
            Ok(binary) => binaries.push((ALIOTH, binary)),
            Err(error) => gaps.push(("alioth", format!("left out: {error:#}"))),
        }
        for variable in NAMED {
            match env::var_os(variable) {
                Some(binary) => binaries.push((variable, fs::canonicalize(binary)?)),
                None => gaps.push((variable, "left out: the variable names no binary".into())),
            }
        }
        Ok(Self { binaries, gaps })
    }

    pub(crate) fn variables(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        self.binaries.iter().map(|(variable, binary)| (*variable, binary))
    }

    /// Takes them to the lab, each to its place on this host.
    pub(crate) fn add_to(&self, run: &mut Run) -> Result<()> {
        add_qemu(run)?;
        for (variable, binary) in &self.binaries {
            let binary = binary.to_str().context("a monitor's path is not text")?;
            run.files.extend(with_libraries(&[binary])?);
            run.env.push(((*variable).to_owned(), binary.to_owned()));
        }
        Ok(())
    }

    /// Which versions take part, and who does not.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let mut facts = vec![("QEMU", version(Path::new("qemu-system-x86_64")))];
        let names = self.binaries.iter().map(|(name, binary)| (*name, version(binary)));
        facts.extend(names);
        facts.extend(self.gaps.iter().cloned());
        facts
    }
}

/// Takes QEMU and what it reads to the lab.
pub(crate) fn add_qemu(run: &mut Run) -> Result<()> {
    run.files.extend(with_libraries(&["qemu-system-x86_64"])?);
    let firmware = FIRMWARE.map(PathBuf::from).into_iter().filter(|file| file.is_file());
    run.files.extend(firmware.map(|file| Shared { host: file.clone(), guest: file }));
    Ok(())
}

/// The newest alioth, built by cargo once.
fn alioth(cache: &Path) -> Result<PathBuf> {
    let folder = cache.join("alioth");
    let binary = folder.join("bin/alioth");
    if !binary.is_file() {
        let mut install = Command::new("cargo");
        install.args(["install", "alioth-cli", "--locked", "--root"]).arg(&folder);
        step::run("installing alioth", &mut install)?;
    }
    Ok(binary)
}

fn version(binary: &Path) -> String {
    let output = Command::new(binary).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok().and_then(|text| Some(text.lines().next()?.to_owned())).unwrap_or_default()
}
