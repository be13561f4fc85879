//! A disk with a whole Debian on it, for guests to mount as their root.

use anyhow::{Context, Result};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup;
use crate::step;

/// Debian packages beyond the smallest system. Busybox is its init.
const PACKAGES: &str =
    "busybox,fio,iproute2,iputils-ping,ethtool,iperf3,python3-minimal,libpython3-stdlib";

/// Room for some 100 MB more than what is on it.
const SIZE: &str = "512M";

/// Where the packages come from if apt does not know a mirror.
const MIRROR: &str = "http://deb.debian.org/debian";

/// Busybox's init: once all is mounted, it does the job that whoever started it left there.
const INITTAB: &str = "\
::sysinit:/run/job
::shutdown:/bin/sync
::shutdown:/bin/mount -o remount,ro /
";

/// The disk of this Debian release and of this file as it is, made unless it is there.
pub(super) fn prepare(cache: &Path) -> Result<PathBuf> {
    let release = release()?;
    let mut hasher = DefaultHasher::new();
    include_str!("root_disk.rs").hash(&mut hasher);
    let disk = cache.join(format!("root-{release}-{:016x}.ext4", hasher.finish()));
    if disk.is_file() {
        return Ok(disk);
    }
    setup::root_disk_tools()?;
    for entry in fs::read_dir(cache)?.filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with("root-") {
            fs::remove_file(entry.path())?;
        }
    }
    let scratch = tempfile::tempdir_in(cache)?;
    let root = scratch.path().join("root");
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", &format!("--include={PACKAGES}"), &release]);
    bootstrap.arg(&root).arg(mirror(&release));
    step::run(&format!("making a Debian root ({release})"), &mut bootstrap)?;
    finish(&root)?;

    let made = scratch.path().join("disk.ext4");
    let mut mkfs = Command::new(setup::find_program("mkfs.ext4").context("no mkfs.ext4")?);
    mkfs.args(["-q", "-m", "0", "-d"]).arg(&root).arg(&made).arg(SIZE);
    step::run("making a disk of it", &mut mkfs)?;
    fs::rename(made, &disk)?;
    Ok(disk)
}

/// Takes out what was only needed to make it, and gives it an init.
fn finish(root: &Path) -> Result<()> {
    for folder in ["var/cache/apt", "var/lib/apt/lists"] {
        fs::remove_dir_all(root.join(folder))?;
        fs::create_dir(root.join(folder))?;
    }
    fs::write(root.join("etc/inittab"), INITTAB)?;
    symlink("/bin/busybox", root.join("sbin/init"))?;
    Ok(())
}

/// The code name of this host's Debian.
fn release() -> Result<String> {
    let text = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    Ok(name.context("/etc/os-release names no VERSION_CODENAME")?.trim_matches('"').to_owned())
}

/// The mirror that apt uses for this release.
fn mirror(release: &str) -> String {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"]);
    let text = targets.output().map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    let wanted = format!(" {release} main");
    text.lines().find_map(|line| line.strip_suffix(&wanted)).unwrap_or(MIRROR).to_owned()
}
