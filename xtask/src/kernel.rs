//! `cargo xtask kernel`: the kernel for microVMs, built from Debian's source package.

use anyhow::{Context, Result, ensure};
use clap::Args;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use crate::cargo::{Workspace, root};
use crate::setup::{self, Package};
use crate::step;

/// The files that a build leaves, and what each is called afterwards.
const PRODUCTS: [(&str, &str); 3] =
    [("vmlinux", "vmlinux"), ("arch/x86/boot/bzImage", "bzImage"), (".config", "config")];

/// Raised when `build` is changed so that it makes another kernel: building one takes too long to do
/// it for every change of this file.
const RECIPE: u32 = 1;

#[derive(Args)]
pub(crate) struct Options {
    /// Copy vmlinux, bzImage and config to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// `cargo xtask kernel`.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernel = MicrovmKernel::prepare(&Workspace::load()?.lab())?;
    let folder = match &options.out {
        Some(out) => {
            fs::create_dir_all(out)?;
            for (_, name) in PRODUCTS {
                fs::copy(kernel.folder.join(name), out.join(name))?;
            }
            out
        }
        None => &kernel.folder,
    };
    println!("{}", kernel.package);
    for (_, name) in PRODUCTS {
        let file = folder.join(name);
        println!("{:9} bytes  {}", fs::metadata(&file)?.len(), file.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// A small kernel with what a microVM needs and nothing else: `lab/kernel.config`.
pub(crate) struct MicrovmKernel {
    /// The source package with its version.
    pub(crate) package: String,
    folder: PathBuf,
}

impl MicrovmKernel {
    /// The kernel of today's source package and of the configuration as it is, built unless it is there.
    pub(crate) fn prepare(cache: &Path) -> Result<Self> {
        setup::kernel_tools()?;
        fs::create_dir_all(cache)?;
        let package = setup::kernel_source(cache)?;
        let fragment = root().join("lab/kernel.config");
        let mut hasher = DefaultHasher::new();
        RECIPE.hash(&mut hasher);
        fs::read(&fragment).with_context(|| fragment.display().to_string())?.hash(&mut hasher);
        let folder =
            cache.join(format!("microvm-kernel-{}-{:016x}", package.version, hasher.finish()));
        if !folder.is_dir() {
            let scratch = tempfile::tempdir_in(cache)?;
            let built = build(&package, &fragment, scratch.path())?;
            fs::rename(built, &folder)?;
        }
        Ok(Self { package: package.version, folder })
    }

    /// The kernel as an ELF file.
    pub(crate) fn vmlinux(&self) -> PathBuf {
        self.folder.join("vmlinux")
    }
}

/// Builds in `scratch`, and tells in which folder of it the products are.
fn build(package: &Package, fragment: &Path, scratch: &Path) -> Result<PathBuf> {
    let deb = setup::download(&package.name, &package.version, scratch)?;
    let tree = scratch.join("tree");
    unpack(&deb, scratch, &tree)?;

    step::run("configuring the kernel", make(&tree).arg("tinyconfig"))?;
    // Allnoconfig for what the fragment does not name: nothing comes in by its default.
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    merge.current_dir(&tree).args(["-n", ".config"]).arg(fragment);
    step::run("configuring the kernel", &mut merge)?;
    let (wanted, made) = (fs::read_to_string(fragment)?, fs::read_to_string(tree.join(".config"))?);
    let without_effect = missing(&wanted, &made);
    if !without_effect.is_empty() {
        eprintln!("{} does not take: {}", package.name, without_effect.join(" "));
    }
    let jobs = std::thread::available_parallelism()?;
    let mut compile = make(&tree);
    compile.arg(format!("-j{jobs}")).args(["vmlinux", "bzImage"]);
    step::run("building the kernel for microVMs", &mut compile)?;

    let products = scratch.join("products");
    fs::create_dir(&products)?;
    for (file, name) in PRODUCTS {
        fs::copy(tree.join(file), products.join(name))?;
    }
    Ok(products)
}

fn make(tree: &Path) -> Command {
    let mut make = Command::new("make");
    make.current_dir(tree).arg("--silent");
    // The same sources give the same kernel, whoever builds it and when.
    make.env("KBUILD_BUILD_TIMESTAMP", "@0").env("KBUILD_BUILD_USER", "sparkler");
    make.env("KBUILD_BUILD_HOST", "lab");
    make
}

/// The package holds a tar archive of the sources.
fn unpack(deb: &Path, scratch: &Path, tree: &Path) -> Result<()> {
    let mut extract = Command::new("dpkg-deb");
    extract.arg("--extract").arg(deb).arg(scratch.join("package"));
    step::run("unpacking the source package", &mut extract)?;
    let sources = scratch.join("package/usr/src");
    let archives = fs::read_dir(&sources)?.filter_map(|entry| Some(entry.ok()?.path()));
    let is_tar = |path: &PathBuf| path.to_string_lossy().contains(".tar");
    let archive = archives.into_iter().find(is_tar).context("the package has no sources")?;
    fs::create_dir(tree)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--strip-components=1", "--file"]).arg(archive);
    step::run("unpacking the kernel's sources", unpack.arg("--directory").arg(tree))?;
    ensure!(File::open(tree.join("Makefile")).is_ok(), "the package's archive has no kernel in it");
    Ok(())
}

/// The lines of the fragment that the whole configuration does not have.
fn missing<'a>(fragment: &'a str, config: &str) -> Vec<&'a str> {
    let has = |line: &str| config.lines().any(|other| other == line);
    fragment.lines().filter(|line| line.starts_with("CONFIG_") && !has(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_effect_is_found() {
        let config = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_CC=y\n";
        let fragment = "# text\n\nCONFIG_A=y\nCONFIG_B=y\nCONFIG_C=y\n";
        assert_eq!(missing(fragment, config), ["CONFIG_B=y", "CONFIG_C=y"]);
    }
}
