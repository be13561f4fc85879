//! The same machine, as each monitor wants to be told of it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

const CMDLINE: &str = "console=ttyS0 quiet panic=-1 root=/dev/vda ro end=reboot";

/// What the machine is made of.
pub(crate) struct Files {
    /// For the files of a monitor itself.
    folder: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
    /// The disk to be measured.
    image: PathBuf,
    job: PathBuf,
}

impl Files {
    pub(crate) fn new(folder: &Path, image: &Path, job: &Path) -> Result<Self> {
        let variable = |name| -> Result<PathBuf> {
            Ok(std::env::var_os(name).ok_or_else(|| format!("{name} must name a file"))?.into())
        };
        Ok(Self {
            folder: folder.to_owned(),
            kernel: variable("SPARKLER_KERNEL")?,
            initrd: variable("SPARKLER_INITRD")?,
            root: variable("SPARKLER_ROOT_DISK")?,
            image: image.to_owned(),
            job: job.to_owned(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Monitor {
    Sparkler,
    /// With a thread of its own for the disk, and the host's threads for its I/O.
    QemuThreads,
    /// The same with io_uring.
    QemuUring,
    Firecracker,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sparkler => "sparkler",
            Self::QemuThreads => "QEMU microvm, threads",
            Self::QemuUring => "QEMU microvm, io_uring",
            Self::Firecracker => "Firecracker",
        })
    }
}

impl Monitor {
    /// All that this host has.
    pub(crate) fn all() -> Vec<Self> {
        let mut monitors = vec![Self::Sparkler];
        let mut qemu = Command::new("qemu-system-x86_64");
        if qemu.arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success()) {
            monitors.extend([Self::QemuThreads, Self::QemuUring]);
        } else {
            println!("QEMU is not installed and does not take part");
        }
        if std::env::var_os("FIRECRACKER").is_some() {
            monitors.push(Self::Firecracker);
        }
        monitors
    }

    pub(crate) fn command(self, files: &Files) -> Result<Command> {
        match self {
            Self::Sparkler => Ok(sparkler(files)),
            Self::QemuThreads => Ok(qemu(files, "threads")),
            Self::QemuUring => Ok(qemu(files, "io_uring")),
            Self::Firecracker => firecracker(files),
        }
    }
}

fn sparkler(files: &Files) -> Command {
    let mut command = Command::new("sparkler");
    command.arg("run").arg(&files.kernel).arg("--initrd").arg(&files.initrd);
    command.args(["--cmdline", CMDLINE, "-m", "512M"]);
    for (path, options) in
        [(&files.root, ",ro"), (&files.image, ""), (&files.job, ",ro,serial=job")]
    {
        command.arg("--disk").arg(with(path, options));
    }
    command
}

fn qemu(files: &Files, aio: &str) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args([
        "-M",
        "microvm,pit=off,pic=off,rtc=off,acpi=on",
        "-accel",
        "kvm",
        "-cpu",
        "host",
    ]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-serial", "stdio", "-smp", "1", "-m", "512", "-append", CMDLINE]);
    command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initrd);
    // As modern as ours: without it, neither event indices nor version 1.
    command.args(["-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=thread"]);
    let image = format!("aio={aio},cache=writeback");
    let disks = [
        ("root", &files.root, "readonly=on", ""),
        ("image", &files.image, &image, ",iothread=thread"),
        ("job", &files.job, "readonly=on", ",serial=job"),
    ];
    for (name, path, drive, device) in disks {
        let mut option = OsString::from(format!("if=none,id={name},format=raw,{drive},file="));
        option.push(path);
        command.arg("-drive").arg(option);
        command.args(["-device", &format!("virtio-blk-device,drive={name}{device}")]);
    }
    command
}

/// `FIRECRACKER_KERNEL` names the kernel as an ELF file, as Firecracker unpacks none.
fn firecracker(files: &Files) -> Result<Command> {
    let binary = std::env::var_os("FIRECRACKER").ok_or("FIRECRACKER must name a binary")?;
    let kernel = std::env::var("FIRECRACKER_KERNEL")
        .map_err(|_| "FIRECRACKER_KERNEL must name an unpacked kernel (vmlinux)")?;
    // Its disks have no serial number that we could choose: the job is found by its place.
    let drive = |name: &str, path: &Path, read_only: bool| {
        format!(
            r#"{{"drive_id":"{name}","path_on_host":"{}","is_root_device":false,"is_read_only":{read_only},"cache_type":"Writeback"}}"#,
            path.display()
        )
    };
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{kernel}","initrd_path":"{}","boot_args":"{CMDLINE} job=/dev/vdc"}},
"machine-config":{{"vcpu_count":1,"mem_size_mib":512}},"drives":[{},{},{}]}}"#,
        files.initrd.display(),
        drive("root", &files.root, true),
        drive("image", &files.image, false),
        drive("job", &files.job, true),
    );
    let path = files.folder.join("firecracker.json");
    fs::write(&path, config)?;
    let mut command = Command::new(binary);
    command.args(["--no-api", "--config-file"]).arg(path);
    Ok(command)
}

fn with(path: &Path, options: &str) -> OsString {
    let mut text = OsString::from(path);
    text.push(options);
    text
}
