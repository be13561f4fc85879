//! The same machine with a stock Linux, as each monitor wants to be told of it.

use std::env;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// One vCPU and 512 MiB, a console on standard output, and disks: the root, then others, then the job.
#[derive(Debug, Clone)]
pub struct LinuxMachine {
    /// For the files of a monitor itself.
    folder: PathBuf,
    kernel: PathBuf,
    initrd: PathBuf,
    cmdline: String,
    disks: Vec<Disk>,
}

/// A disk, its image a raw file.
#[derive(Debug, Clone)]
pub struct Disk {
    /// What QEMU and Firecracker call it.
    pub name: &'static str,
    /// Its image.
    pub path: PathBuf,
    /// Whether the guest may not write to it.
    pub read_only: bool,
    /// What it says its serial number is; empty for none.
    pub serial: &'static str,
    /// More options of QEMU's `-drive` and `-device`, each after a comma.
    pub qemu_options: [String; 2],
}

impl LinuxMachine {
    /// With the kernel, the initrd and the root that `SPARKLER_KERNEL`, `SPARKLER_INITRD` and
    /// `SPARKLER_ROOT_DISK` name, and the script `job`, which ends it. `cmdline` is said behind what all
    /// such machines need.
    ///
    /// # Errors
    /// If one of the variables is missing.
    pub fn new(folder: &Path, job: &Path, cmdline: &str) -> Result<Self> {
        let variable = |name| -> Result<PathBuf> {
            Ok(env::var_os(name).ok_or_else(|| format!("{name} must name a file"))?.into())
        };
        let read_only = |name, path: PathBuf, serial| {
            let qemu_options = Default::default();
            Disk { name, path, read_only: true, serial, qemu_options }
        };
        Ok(Self {
            folder: folder.to_owned(),
            kernel: variable("SPARKLER_KERNEL")?,
            initrd: variable("SPARKLER_INITRD")?,
            cmdline: format!("console=ttyS0 quiet panic=-1 root=/dev/vda ro end=reboot{cmdline}"),
            disks: vec![
                read_only("root", variable("SPARKLER_ROOT_DISK")?, ""),
                read_only("job", job.to_owned(), "job"),
            ],
        })
    }

    /// With one more disk, behind all but the job's.
    #[must_use]
    pub fn disk(mut self, disk: Disk) -> Self {
        let last = self.disks.len().saturating_sub(1);
        self.disks.insert(last, disk);
        self
    }

    /// Sparkler with it.
    #[must_use]
    pub fn sparkler(&self) -> Command {
        let mut command = Command::new("sparkler");
        command.arg("run").arg(&self.kernel).arg("--initrd").arg(&self.initrd);
        command.args(["--cmdline", &self.cmdline, "-m", "512M"]);
        for Disk { path, read_only, serial, .. } in &self.disks {
            let mut disk = OsString::from(path);
            disk.push(if *read_only { ",ro" } else { "" });
            disk.push(option("serial", serial));
            command.arg("--disk").arg(disk);
        }
        command
    }

    /// QEMU's microvm with it.
    #[must_use]
    pub fn qemu(&self) -> Command {
        let mut command = Command::new(QEMU);
        command.args(["-M", "microvm,pit=off,pic=off,rtc=off,acpi=on"]);
        command.args(["-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "512"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
        command.args(["-serial", "stdio", "-append", &self.cmdline]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initrd);
        // As modern as ours: without it, neither event indices nor version 1.
        command.args(["-global", "virtio-mmio.force-legacy=false"]);
        for Disk { name, path, read_only, serial, qemu_options } in &self.disks {
            let [of_drive, of_device] = qemu_options;
            let read_only = if *read_only { "on" } else { "off" };
            let mut drive = OsString::from(format!(
                "if=none,id={name},format=raw,readonly={read_only}{of_drive},file="
            ));
            drive.push(path);
            let serial = option("serial", serial);
            let device = format!("virtio-blk-device,drive={name}{of_device}{serial}");
            command.arg("-drive").arg(drive).args(["-device", &device]);
        }
        command
    }

    /// The Firecracker that `FIRECRACKER` names, with it, these `network-interfaces`, and the kernel as an
    /// ELF file that `FIRECRACKER_KERNEL` names, as Firecracker unpacks none.
    ///
    /// # Errors
    /// If one of the variables is missing, or its configuration cannot be written.
    pub fn firecracker(&self, networks: &Value) -> Result<Command> {
        let binary = env::var_os("FIRECRACKER").ok_or("FIRECRACKER must name a binary")?;
        let kernel = env::var("FIRECRACKER_KERNEL")
            .map_err(|_| "FIRECRACKER_KERNEL must name an unpacked kernel (vmlinux)")?;
        let drive = |Disk { name, path, read_only, .. }: &Disk| {
            json!({
                "drive_id": name, "path_on_host": path, "is_root_device": false,
                "is_read_only": read_only, "cache_type": "Writeback",
            })
        };
        // Its disks have no serial number that we could choose: the job is found by its place.
        let last = ('a'..='z').nth(self.disks.len().saturating_sub(1)).ok_or("too many disks")?;
        let config = json!({
            "boot-source": {
                "kernel_image_path": kernel, "initrd_path": self.initrd,
                "boot_args": format!("{} job=/dev/vd{last}", self.cmdline),
            },
            "machine-config": { "vcpu_count": 1, "mem_size_mib": 512 },
            "drives": self.disks.iter().map(drive).collect::<Vec<_>>(),
            "network-interfaces": networks,
        });
        let path = self.folder.join("firecracker.json");
        fs::write(&path, config.to_string())?;
        let mut command = Command::new(binary);
        command.args(["--no-api", "--config-file"]).arg(path);
        Ok(command)
    }
}

const QEMU: &str = "qemu-system-x86_64";

/// Whether QEMU is installed; says so if it is not.
#[must_use]
pub fn has_qemu() -> bool {
    let mut qemu = Command::new(QEMU);
    let status = qemu.arg("--version").stdout(Stdio::null()).status();
    let has = status.is_ok_and(|status| status.success());
    if !has {
        println!("QEMU is not installed and does not take part");
    }
    has
}

/// Whether `FIRECRACKER` asks for it.
#[must_use]
pub fn has_firecracker() -> bool {
    env::var_os("FIRECRACKER").is_some()
}

fn option(name: &str, value: &str) -> String {
    if value.is_empty() { String::new() } else { format!(",{name}={value}") }
}
