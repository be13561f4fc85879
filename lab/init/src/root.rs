//! A root file system on a disk, and a job to be done there.

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use std::convert::Infallible;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::disks;

/// Where the root is mounted until it becomes the root.
const NEW_ROOT: &str = "/new-root";
/// The job's script in the new root, which has a fresh file system there.
const JOB: &str = "/run/job";
/// The serial number of the disk that holds the script, followed by zeroes.
const JOB_DISK: &str = "job";

/// Mounts the ext4 file system on this device, makes it the root of this process and all that it
/// starts, and puts the job's script at `/run/job` if there is one: from the device `job`, or else from
/// the disk that says that it is the job.
pub(crate) fn enter(device: &str, read_only: bool, job: Option<&str>) -> Result<()> {
    fs::create_dir(NEW_ROOT)?;
    let flags = if read_only { MountFlags::RDONLY } else { MountFlags::empty() };
    mount(device, NEW_ROOT, "ext4", flags, None)
        .with_context(|| format!("cannot mount ext4 from {device}"))?;
    for target in ["/dev", "/proc", "/sys"] {
        mount_move(target, format!("{NEW_ROOT}{target}"))?;
    }
    for target in ["/run", "/tmp"] {
        mount("tmpfs", format!("{NEW_ROOT}{target}"), "tmpfs", MountFlags::empty(), None)?;
    }
    // The initrd's root cannot be unmounted; what moves onto it hides it.
    rustix::process::chdir(NEW_ROOT)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")?;
    let job = match job {
        Some(device) => Some(device.into()),
        None => disks::by_serial(JOB_DISK)?,
    };
    if let Some(disk) = job {
        install_job(&disk)?;
    }
    Ok(())
}

/// Does the job with the root's shell and tells its exit code.
pub(crate) fn run_job() -> Result<u8> {
    if !Path::new(JOB).exists() {
        return Ok(0);
    }
    let status = environment(&mut Command::new("/bin/sh")).args(["-eu", JOB]).status()?;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => Ok(code),
        None => bail!("the job ended by a signal: {status}"),
    }
}

/// Hands over to the root's own init, which finds the job at `/run/job`. Returns only if it cannot.
pub(crate) fn hand_over(init: &str) -> Result<Infallible> {
    Err(environment(&mut Command::new(init)).exec()).with_context(|| format!("cannot run {init}"))
}

/// Nothing is written to the root any more, and all of it is on the disk.
pub(crate) fn leave() -> Result<()> {
    rustix::fs::sync();
    mount_remount("/", MountFlags::RDONLY, "").context("cannot make the root read-only")
}

fn install_job(disk: &Path) -> Result<()> {
    let mut script = Vec::new();
    fs::File::open(disk)?.read_to_end(&mut script)?;
    let length = script.iter().position(|byte| *byte == 0).unwrap_or(script.len());
    script.truncate(length);
    fs::write(JOB, script)?;
    Ok(fs::set_permissions(JOB, fs::Permissions::from_mode(0o755))?)
}

fn environment(command: &mut Command) -> &mut Command {
    command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
}
