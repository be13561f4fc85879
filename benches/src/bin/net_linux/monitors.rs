//! The same machine, as each monitor wants to be told of it.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{GUEST, HOST, Result, TAP};

const MAC: &str = "02:00:00:00:00:01";

fn cmdline() -> String {
    format!(
        "console=ttyS0 quiet panic=-1 root=/dev/vda ro end=reboot ip={GUEST}::{HOST}:255.255.255.0::eth0:off"
    )
}

/// What the machine is made of.
pub(crate) struct Files {
    /// For the files of a monitor itself.
    folder: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    root: PathBuf,
    job: PathBuf,
}

impl Files {
    pub(crate) fn new(folder: &Path, job: &Path) -> Result<Self> {
        let variable = |name| -> Result<PathBuf> {
            Ok(std::env::var_os(name).ok_or_else(|| format!("{name} must name a file"))?.into())
        };
        Ok(Self {
            folder: folder.to_owned(),
            kernel: variable("SPARKLER_KERNEL")?,
            initrd: variable("SPARKLER_INITRD")?,
            root: variable("SPARKLER_ROOT_DISK")?,
            job: job.to_owned(),
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Monitor {
    Sparkler,
    SparklerVhost,
    Qemu,
    /// Frames go between the tap and the guest's memory in the kernel.
    QemuVhost,
    Firecracker,
}

impl fmt::Display for Monitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sparkler => "sparkler",
            Self::SparklerVhost => "sparkler, vhost",
            Self::Qemu => "QEMU microvm",
            Self::QemuVhost => "QEMU microvm, vhost",
            Self::Firecracker => "Firecracker",
        })
    }
}

impl Monitor {
    /// All that this host has.
    pub(crate) fn all() -> Vec<Self> {
        let mut monitors = vec![Self::Sparkler];
        let vhost = Path::new("/dev/vhost-net").exists();
        if vhost {
            monitors.push(Self::SparklerVhost);
        } else {
            println!("there is no /dev/vhost-net: nobody has vhost");
        }
        let mut qemu = Command::new("qemu-system-x86_64");
        if qemu.arg("--version").stdout(Stdio::null()).status().is_ok_and(|it| it.success()) {
            monitors.push(Self::Qemu);
            if vhost {
                monitors.push(Self::QemuVhost);
            }
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
            Self::Sparkler => Ok(sparkler(files, "")),
            Self::SparklerVhost => Ok(sparkler(files, ",vhost")),
            Self::Qemu => Ok(qemu(files, "off")),
            Self::QemuVhost => Ok(qemu(files, "on")),
            Self::Firecracker => firecracker(files),
        }
    }
}

fn sparkler(files: &Files, option: &str) -> Command {
    let mut command = Command::new("sparkler");
    command.arg("run").arg(&files.kernel).arg("--initrd").arg(&files.initrd);
    command.args(["--cmdline", &cmdline(), "-m", "512M"]);
    for (path, options) in [(&files.root, ",ro"), (&files.job, ",ro,serial=job")] {
        let mut disk = OsString::from(path);
        disk.push(options);
        command.arg("--disk").arg(disk);
    }
    command.args(["--net", &format!("tap={TAP},mac={MAC}{option}")]);
    command
}

fn qemu(files: &Files, vhost: &str) -> Command {
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
    command.args(["-serial", "stdio", "-smp", "1", "-m", "512", "-append", &cmdline()]);
    command.arg("-kernel").arg(&files.kernel).arg("-initrd").arg(&files.initrd);
    // As modern as ours: without it, neither event indices nor version 1.
    command.args(["-global", "virtio-mmio.force-legacy=false"]);
    for (name, path, device) in [("root", &files.root, ""), ("job", &files.job, ",serial=job")] {
        let mut option = OsString::from(format!("if=none,id={name},format=raw,readonly=on,file="));
        option.push(path);
        command.arg("-drive").arg(option);
        command.args(["-device", &format!("virtio-blk-device,drive={name}{device}")]);
    }
    let tap = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
    command.args(["-netdev", &tap]);
    command.args(["-device", &format!("virtio-net-device,netdev=net,mac={MAC}")]);
    command
}

/// `FIRECRACKER_KERNEL` names the kernel as an ELF file, as Firecracker unpacks none.
fn firecracker(files: &Files) -> Result<Command> {
    let binary = std::env::var_os("FIRECRACKER").ok_or("FIRECRACKER must name a binary")?;
    let kernel = std::env::var("FIRECRACKER_KERNEL")
        .map_err(|_| "FIRECRACKER_KERNEL must name an unpacked kernel (vmlinux)")?;
    // Its disks have no serial number that we could choose: the job is found by its place.
    let drive = |name: &str, path: &Path| {
        format!(
            r#"{{"drive_id":"{name}","path_on_host":"{}","is_root_device":false,"is_read_only":true}}"#,
            path.display()
        )
    };
    let config = format!(
        r#"{{"boot-source":{{"kernel_image_path":"{kernel}","initrd_path":"{}","boot_args":"{} job=/dev/vdb"}},
"machine-config":{{"vcpu_count":1,"mem_size_mib":512}},"drives":[{},{}],
"network-interfaces":[{{"iface_id":"eth0","guest_mac":"{MAC}","host_dev_name":"{TAP}"}}]}}"#,
        files.initrd.display(),
        cmdline(),
        drive("root", &files.root),
        drive("job", &files.job),
    );
    let path = files.folder.join("firecracker.json");
    fs::write(&path, config)?;
    let mut command = Command::new(binary);
    command.args(["--no-api", "--config-file"]).arg(path);
    Ok(command)
}
