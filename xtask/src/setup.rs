//! What a fresh machine lacks: Debian packages, Rust toolchains and targets, the lab's kernel.

use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::cargo::{LAB_TARGET, root};
use crate::step;

/// The Debian package that always depends on the current kernel for virtual machines.
const KERNEL_PACKAGE: &str = "linux-image-cloud-amd64";

/// The Debian packages of kernel sources begin with this, and end with the version; and the one that
/// `lab/kernel.config` was written for.
const SOURCE_PACKAGES: &str = "linux-source-";
const SOURCE_PACKAGE: &str = "linux-source-6.12";

/// Where apt keeps the lists of packages; its time changes with them.
const PACKAGE_LISTS: &str = "/var/lib/apt/lists";

/// Programs that a guest is made with, and the Debian packages of each.
const GUEST_PROGRAMS: [(&str, &str); 3] =
    [("cpio", "cpio"), ("xz", "xz-utils"), ("cc", "gcc libc6-dev")];

/// Programs that the lab needs beyond that.
const LAB_PROGRAMS: [(&str, &str); 5] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("/usr/share/seabios/bios-256k.bin", "seabios"),
    ("busybox", "busybox-static"),
    ("mkfs.ext4", "e2fsprogs"),
    ("setpriv", "util-linux"),
];

/// Programs and a library that a kernel is built with.
const KERNEL_PROGRAMS: [(&str, &str); 11] = [
    ("cc", "gcc libc6-dev"),
    ("make", "make"),
    ("flex", "flex"),
    ("bison", "bison"),
    ("bc", "bc"),
    ("perl", "perl"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("cpio", "cpio"),
    ("find", "findutils"),
    ("/usr/include/libelf.h", "libelf-dev"),
];

/// Programs that a disk with a Debian root is made with.
const ROOT_DISK_PROGRAMS: [(&str, &str); 2] =
    [("debootstrap", "debootstrap"), ("mkfs.ext4", "e2fsprogs")];

/// What is on the other side of a guest's network.
pub(crate) const NETWORK_PROGRAMS: [&str; 4] = ["iperf3", "tcpdump", "ethtool", "passt"];

/// Other monitors. The lab is QEMU's too, but hardware KVM needs no lab.
const PEERS: [(&str, &str); 2] =
    [("qemu-system-x86_64", "qemu-system-x86"), ("/usr/share/seabios/bios-microvm.bin", "seabios")];

/// Programs that the fuzz targets need beyond that: libFuzzer is C++.
const FUZZ_PROGRAMS: [(&str, &str); 2] = [("cc", "gcc libc6-dev"), ("c++", "g++")];

/// Something is missing that only the administrator can install.
#[derive(Debug)]
pub(crate) enum NeedsRoot {
    /// These commands install what is missing.
    Packages(String),
    /// This takes an administrator's rights wherever it is done.
    Step(&'static str),
}

impl std::error::Error for NeedsRoot {}

impl std::fmt::Display for NeedsRoot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Packages(run) => write!(f, "Debian packages are missing; as root, run: {run}"),
            Self::Step(step) => write!(f, "only root can do this: {step}"),
        }
    }
}

/// Everything that a guest of ours and its monitor are made with, except the kernel.
pub(crate) fn guest_tools() -> Result<()> {
    debian_packages(&GUEST_PROGRAMS)?;
    rust_target(LAB_TARGET)
}

/// Everything that the lab is made with.
pub(crate) fn lab_tools() -> Result<()> {
    debian_packages(&LAB_PROGRAMS)?;
    guest_tools()
}

/// Everything that a kernel is built with, except its sources.
pub(crate) fn kernel_tools() -> Result<()> {
    debian_packages(&KERNEL_PROGRAMS)
}

/// What runs next to our monitor in a benchmark.
pub(crate) fn peers() -> Result<()> {
    debian_packages(&PEERS)
}

/// What is on the other side of a guest's network.
pub(crate) fn network_programs() -> Result<()> {
    // Each is in a package of its own name.
    debian_packages(&NETWORK_PROGRAMS.map(|program| (program, program)))
}

/// Everything that a disk with a Debian root is made with, and the rights for it.
pub(crate) fn root_disk_tools() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(NeedsRoot::Step("debootstrap, which makes a Debian root").into());
    }
    debian_packages(&ROOT_DISK_PROGRAMS)
}

/// Everything that fuzzing needs except the nightly toolchain.
pub(crate) fn fuzz_tools() -> Result<()> {
    debian_packages(&FUZZ_PROGRAMS)?;
    cargo_tool("fuzz", "")
}

/// What looks through the dependencies.
pub(crate) fn cargo_deny() -> Result<()> {
    cargo_tool("deny", ", which takes minutes")
}

/// What compares the public interface with that of a release.
pub(crate) fn cargo_semver_checks() -> Result<()> {
    cargo_tool("semver-checks", ", which takes ten minutes and more")
}

/// A subcommand of cargo, installed if it is not there; `patience` is said of how long that takes.
fn cargo_tool(subcommand: &str, patience: &str) -> Result<()> {
    if succeeds(Command::new("cargo").args([subcommand, "--version"])) {
        return Ok(());
    }
    let package = format!("cargo-{subcommand}");
    let mut install = Command::new("cargo");
    install.args(["install", &package, "--locked"]);
    step::run(&format!("installing {package}{patience}"), &mut install)?;
    Ok(())
}

/// A Rust toolchain by name, installed by rustup if it is not there.
pub(crate) fn rust_toolchain(name: &str) -> Result<()> {
    if succeeds(Command::new("rustup").args(["run", name, "cargo", "--version"])) {
        return Ok(());
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", name, "--profile", "minimal", "--no-self-update"]);
    step::run(&format!("installing Rust {name}"), &mut install)?;
    Ok(())
}

fn rust_target(target: &str) -> Result<()> {
    let mut sysroot = Command::new("rustc");
    let output = sysroot.args(["--print", "target-libdir", "--target", target]).output()?;
    if Path::new(String::from_utf8_lossy(&output.stdout).trim()).is_dir() {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    add.current_dir(root()).args(["target", "add", target]);
    step::run(&format!("installing the Rust target {target}"), &mut add)?;
    Ok(())
}

/// Installs the packages of those programs that are not there.
pub(crate) fn debian_packages(programs: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = programs
        .iter()
        .filter(|(program, _)| find_program(program).is_none())
        .flat_map(|(_, packages)| packages.split(' '))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    let by_hand =
        format!("apt-get update && apt-get install --yes --no-install-recommends {names}");
    if find_program("apt-get").is_none() {
        bail!("these Debian packages, or what they contain, are missing: {names}");
    }
    if !rustix::process::geteuid().is_root() {
        return Err(NeedsRoot::Packages(by_hand).into());
    }
    update_package_lists()?;
    let mut install = apt_get("install");
    install.args(["--yes", "--no-install-recommends"]).args(&missing);
    step::run(&format!("installing {names}"), &mut install)?;
    Ok(())
}

/// Finds a program as the shell would, with the administrator's folders added; or a file by its path.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
}

/// Debian's stock kernel, as its package carries it.
pub(crate) struct Kernel {
    /// Package, version and architecture, as in the package's file name.
    pub(crate) package: String,
    /// As `uname -r` says it.
    pub(crate) release: String,
    /// The bzImage, unmodified.
    pub(crate) vmlinuz: PathBuf,
    /// The folder of its modules.
    pub(crate) modules: PathBuf,
}

/// Debian's current stock kernel, unpacked into a folder of `cache` named after the package's
/// version. What is there is kept as long as Debian does not replace it.
pub(crate) fn kernel(cache: &Path) -> Result<Kernel> {
    fs::create_dir_all(cache)?;
    let unpacked = current_kernel(cache).or_else(|_| {
        // The lists are absent, or name a version that the mirror has replaced since.
        update_package_lists()?;
        current_kernel(cache)
    })?;
    // Debian moved /lib into /usr: both places are possible.
    let modules = ["lib/modules", "usr/lib/modules"].map(|path| unpacked.join(path));
    let modules = modules.iter().filter_map(|path| fs::read_dir(path).ok()).flatten().next();
    let modules = modules.context("the kernel package has no modules")??.path();
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let release = name(&modules).context("the kernel package has no release")?;
    Ok(Kernel {
        package: name(&unpacked).unwrap_or_default(),
        vmlinuz: unpacked.join(format!("boot/vmlinuz-{release}")),
        release,
        modules,
    })
}

fn current_kernel(cache: &Path) -> Result<PathBuf> {
    // Asking apt takes a second or two: its answer is kept until its lists change.
    let answer = cache.join("current");
    if is_newer(&answer, Path::new(PACKAGE_LISTS)) {
        let unpacked = cache.join(fs::read_to_string(&answer)?);
        if unpacked.is_dir() {
            return Ok(unpacked);
        }
    }
    let package = kernel_package()?;
    let unpacked = cache.join(&package.version);
    if !unpacked.is_dir() {
        let scratch = tempfile::tempdir_in(cache)?;
        let file = download(&package.name, &package.version, scratch.path())?;
        let mut unpack = Command::new("dpkg-deb");
        unpack.arg("--extract").arg(file).arg(scratch.path().join("x"));
        step::run("unpacking the kernel", &mut unpack)?;
        fs::rename(scratch.path().join("x"), &unpacked)?;
    }
    fs::write(answer, &package.version)?;
    Ok(unpacked)
}

fn is_newer(file: &Path, than: &Path) -> bool {
    let modified = |path| fs::metadata(path).and_then(|metadata| metadata.modified());
    matches!((modified(file), modified(than)), (Ok(file), Ok(than)) if file > than)
}

/// A package as the lists have it today.
pub(crate) struct Package {
    pub(crate) name: String,
    /// The file's name without `.deb`: package, version and architecture.
    pub(crate) version: String,
}

/// Debian's kernel sources: of the version that our configuration is for or, where Debian has none of
/// it, of the newest.
pub(crate) fn kernel_source(cache: &Path) -> Result<Package> {
    // As with the kernel: the answer is kept until apt's lists change.
    let answer = cache.join("current-source");
    if is_newer(&answer, Path::new(PACKAGE_LISTS)) {
        let text = fs::read_to_string(&answer)?;
        if let Some((name, version)) = text.split_once(' ') {
            return Ok(Package { name: name.to_owned(), version: version.to_owned() });
        }
    }
    update_package_lists()?;
    let names = Command::new("apt-cache").args(["pkgnames", SOURCE_PACKAGES]).output();
    let names = names.context("cannot run apt-cache: the kernel's sources are Debian's")?;
    let names = String::from_utf8_lossy(&names.stdout).into_owned();
    let name = choose_source(&names).context("the package lists know no kernel sources")?;
    let package = resolve(name.to_owned())?;
    fs::write(answer, format!("{} {}", package.name, package.version))?;
    Ok(package)
}

fn choose_source(names: &str) -> Option<&str> {
    let version = |name: &str| -> Option<(u32, u32)> {
        let (major, minor) = name.strip_prefix(SOURCE_PACKAGES)?.split_once('.')?;
        Some((major.parse().ok()?, minor.parse().ok()?))
    };
    let newest = || names.lines().filter(|name| version(name).is_some()).max_by_key(|n| version(n));
    names.lines().find(|name| *name == SOURCE_PACKAGE).or_else(newest)
}

/// Resolves today's kernel package from the package lists.
fn kernel_package() -> Result<Package> {
    let mut depends = Command::new("apt-cache");
    depends.env("LC_ALL", "C").args(["depends", KERNEL_PACKAGE]);
    let output = depends.output().context("cannot run apt-cache: the lab's kernel is Debian's")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let image = parse_dependency(&text)
        .with_context(|| format!("the package lists do not know {KERNEL_PACKAGE}"))?;
    resolve(format!("{image}-unsigned"))
}

fn resolve(name: String) -> Result<Package> {
    let uris = apt_get("download").args(["--print-uris", &name]).output()?;
    let uris = String::from_utf8_lossy(&uris.stdout).into_owned();
    let file = uris.split_whitespace().find_map(|word| word.strip_suffix(".deb"));
    let version = file.with_context(|| format!("the package lists do not know {name}"))?;
    Ok(Package { name, version: version.to_owned() })
}

fn parse_dependency(depends: &str) -> Option<&str> {
    depends
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|package| package.starts_with("linux-image-"))
}

/// Downloads a package into `folder`.
pub(crate) fn download(name: &str, version: &str, folder: &Path) -> Result<PathBuf> {
    let mut download = apt_get("download");
    // apt would rather drop its rights for the download, and warns where `_apt` cannot write.
    if rustix::process::geteuid().is_root() {
        download.args(["-o", "APT::Sandbox::User=root"]);
    }
    download.arg(name).current_dir(folder);
    step::run(&format!("downloading {version}"), &mut download)?;
    let file = fs::read_dir(folder)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"));
    file.with_context(|| format!("`{}` left no file", step::describe(&download)))
}

fn update_package_lists() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err(NeedsRoot::Packages("apt-get update".into()).into());
    }
    step::run("updating Debian's package lists", &mut apt_get("update"))?;
    Ok(())
}

fn apt_get(subcommand: &str) -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C").arg(subcommand);
    command
}

fn succeeds(command: &mut Command) -> bool {
    let silent = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    silent.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_kernel_is_what_the_meta_package_depends_on() {
        let depends = "linux-image-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64\n";
        assert_eq!(parse_dependency(depends), Some("linux-image-6.1.0-56-cloud-amd64"));
        assert_eq!(parse_dependency("N: Unable to locate package\n"), None);
    }

    #[test]
    fn the_sources_are_those_that_the_configuration_is_for() {
        let names = "linux-source-6.1\nlinux-source-6.12\nlinux-source-7.3\nlinux-source-x\n";
        assert_eq!(choose_source(names), Some("linux-source-6.12"));
        assert_eq!(choose_source(&names.replace("6.12", "6.9")), Some("linux-source-7.3"));
        assert_eq!(choose_source("linux-source\n"), None);
    }
}
