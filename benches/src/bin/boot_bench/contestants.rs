//! The same machine, as each monitor wants to be told of it.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use sparkler::host::HostKind;

use crate::Result;
use crate::usage::{self, Started};

/// A machine to be started.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: Option<PathBuf>,
    pub(crate) cmdline: String,
    pub(crate) vcpus: u32,
    pub(crate) memory_mib: u32,
    /// A raw image, for reading only: `/dev/vda`.
    pub(crate) disk: Option<PathBuf>,
    /// A tap device.
    pub(crate) tap: Option<String>,
}

impl Machine {
    /// One vCPU and 128 MiB.
    pub(crate) fn new(kernel: &Path, cmdline: &str) -> Self {
        Self {
            kernel: kernel.to_owned(),
            initrd: None,
            cmdline: cmdline.to_owned(),
            vcpus: 1,
            memory_mib: 128,
            disk: None,
            tap: None,
        }
    }

    fn is_elf(&self) -> bool {
        fs::File::open(&self.kernel).is_ok_and(|mut file| {
            let mut magic = [0; 4];
            std::io::Read::read_exact(&mut file, &mut magic).is_ok() && magic == *b"\x7fELF"
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contestant {
    /// The least that KVM allows: runs kernels to their first instruction, and no further.
    Floor,
    Sparkler,
    /// The same without ACPI tables, where the kernel takes devices from its command line.
    SparklerNoAcpi,
    /// The same, with an ELF kernel's file mapped instead of read.
    SparklerMaps,
    /// The same, with a bzImage that was unpacked before.
    SparklerCache,
    QemuMicrovm,
    /// The same without ACPI tables, and with the smaller firmware that QEMU has for this.
    QemuNoAcpi,
    Alioth,
    Firecracker,
    CloudHypervisor,
    Crosvm,
}

/// Those that take part if a variable names their binary.
const NAMED: [(Contestant, &str); 4] = [
    (Contestant::Alioth, "ALIOTH"),
    (Contestant::Firecracker, "FIRECRACKER"),
    (Contestant::CloudHypervisor, "CLOUD_HYPERVISOR"),
    (Contestant::Crosvm, "CROSVM"),
];

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Floor => "floor",
            Self::Sparkler => "sparkler",
            Self::SparklerNoAcpi => "sparkler --no-acpi",
            Self::SparklerMaps => "sparkler --map-kernel",
            Self::SparklerCache => "sparkler --kernel-cache",
            Self::QemuMicrovm => "QEMU microvm",
            Self::QemuNoAcpi => "QEMU microvm, acpi=off",
            Self::Alioth => "alioth",
            Self::Firecracker => "Firecracker",
            Self::CloudHypervisor => "Cloud Hypervisor",
            Self::Crosvm => "crosvm",
        })
    }
}

impl Contestant {
    /// All that are here.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![Self::Floor, Self::Sparkler, Self::SparklerNoAcpi];
        all.extend([Self::SparklerMaps, Self::SparklerCache]);
        let mut qemu = Command::new("qemu-system-x86_64");
        let qemu = qemu.arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if qemu.is_ok_and(|status| status.success()) {
            all.extend([Self::QemuMicrovm, Self::QemuNoAcpi]);
        }
        let named = NAMED.iter().filter(|(_, variable)| std::env::var_os(variable).is_some());
        all.extend(named.map(|(contestant, _)| *contestant));
        all
    }

    /// Whether it takes part in a row with this kernel as itself, or beside itself in a way that makes a
    /// difference there.
    pub(crate) fn fits(self, machine: &Machine) -> bool {
        match self {
            Self::SparklerMaps => machine.is_elf(),
            Self::SparklerCache => !machine.is_elf(),
            _ => true,
        }
    }

    /// Whether it is a monitor as it comes, without a wish for how its kernel is loaded.
    pub(crate) fn is_usual(self) -> bool {
        !matches!(self, Self::SparklerMaps | Self::SparklerCache)
    }

    /// Whether its process ends when the guest resets itself.
    pub(crate) fn ends_at_reset(self) -> bool {
        self != Self::CloudHypervisor
    }

    /// Whether its machine has ACPI tables, without which a stock kernel finds no virtio devices.
    pub(crate) fn has_acpi(self) -> bool {
        !matches!(self, Self::SparklerNoAcpi | Self::QemuNoAcpi)
    }

    /// Whether what it enters first is the kernel, and no firmware.
    pub(crate) fn enters_the_kernel(self) -> bool {
        !matches!(self, Self::QemuMicrovm | Self::QemuNoAcpi)
    }

    /// Starts this machine. Alioth wants a terminal.
    pub(crate) fn start(self, machine: &Machine, scratch: &Path) -> Result<Started> {
        usage::start(&mut self.command(machine, scratch)?, self == Self::Alioth)
    }

    /// How to start this machine; an error says why it cannot.
    fn command(self, machine: &Machine, scratch: &Path) -> Result<Command> {
        match self {
            Self::Floor => floor(machine),
            Self::Sparkler => Ok(sparkler(machine)),
            Self::SparklerNoAcpi | Self::SparklerMaps => {
                let mut command = sparkler(machine);
                let flag = if self.has_acpi() { "--map-kernel" } else { "--no-acpi" };
                command.arg(flag);
                Ok(command)
            }
            Self::SparklerCache => {
                let folder = scratch.join("kernels");
                DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
                let mut command = sparkler(machine);
                command.arg("--kernel-cache").arg(folder);
                Ok(command)
            }
            Self::QemuMicrovm => Ok(qemu(machine, true)),
            Self::QemuNoAcpi => Ok(qemu(machine, false)),
            Self::Alioth => alioth(machine),
            Self::Firecracker => firecracker(machine, scratch),
            Self::CloudHypervisor => cloud_hypervisor(machine),
            Self::Crosvm => crosvm(machine),
        }
    }

    fn binary(self) -> Result<Command> {
        let variable = NAMED.iter().find(|(contestant, _)| *contestant == self);
        let variable = variable.map_or("", |(_, variable)| variable);
        let binary = std::env::var_os(variable);
        Ok(Command::new(binary.ok_or_else(|| format!("{variable} must name a binary"))?))
    }
}

fn floor(machine: &Machine) -> Result<Command> {
    if machine.initrd.is_some() || machine.disk.is_some() || machine.tap.is_some() {
        return Err("it goes no further than the first instruction".into());
    }
    if !machine.is_elf() {
        return Err("it takes ELF files only".into());
    }
    let mut command = Command::new(std::env::current_exe()?.with_file_name("floor"));
    command.args(["--irqchip", "--exit", "--json", &format!("--memory={}", machine.memory_mib)]);
    command.arg(format!("--cmdline={}", machine.cmdline)).arg(&machine.kernel);
    Ok(command)
}

fn sparkler(machine: &Machine) -> Command {
    let binary = std::env::var_os("SPARKLER").unwrap_or("sparkler".into());
    let mut command = Command::new(binary);
    command.arg("run").arg(&machine.kernel).args(["--cmdline", &machine.cmdline]);
    command.args(["-m", &format!("{}M", machine.memory_mib), "-c", &machine.vcpus.to_string()]);
    if let Some(initrd) = &machine.initrd {
        command.arg("--initrd").arg(initrd);
    }
    if let Some(disk) = &machine.disk {
        command.arg("--disk").arg(with(disk.as_ref(), ",ro"));
    }
    if let Some(tap) = &machine.tap {
        command.args(["--net", &format!("tap={tap}")]);
    }
    command
}

/// With all that a microVM does not need switched off, as far as it boots then.
fn qemu(machine: &Machine, acpi: bool) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    // Without ACPI's reset register nothing but a triple fault ends its guest.
    let (acpi, reset) = if acpi { ("on", "") } else { ("off", " reboot=t") };
    command.args(["-M", &format!("microvm,pit=off,pic=off,rtc=off,acpi={acpi}"), "-accel", "kvm"]);
    // On PVM, QEMU ends at a register of the host's processor that it cannot set.
    if HostKind::detect() != HostKind::Pvm {
        command.args(["-cpu", "host"]);
    }
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.args(["-no-reboot", "-serial", "stdio", "-m", &machine.memory_mib.to_string()]);
    command.args(["-smp", &machine.vcpus.to_string(), "-append"]);
    command
        .arg(format!("{}{reset}", machine.cmdline))
        .args(["-global", "virtio-mmio.force-legacy=false"]);
    command.arg("-kernel").arg(&machine.kernel);
    if let Some(initrd) = &machine.initrd {
        command.arg("-initrd").arg(initrd);
    }
    if let Some(disk) = &machine.disk {
        let mut drive = OsString::from("if=none,id=root,format=raw,readonly=on,file=");
        drive.push(disk);
        command.arg("-drive").arg(drive).args(["-device", "virtio-blk-device,drive=root"]);
    }
    if let Some(tap) = &machine.tap {
        let tap = format!("tap,id=net,ifname={tap},script=no,downscript=no");
        command.args(["-netdev", &tap, "-device", "virtio-net-device,netdev=net"]);
    }
    command
}

fn alioth(machine: &Machine) -> Result<Command> {
    let mut command = Contestant::Alioth.binary()?;
    command.arg("boot").arg(if machine.is_elf() { "--pvh" } else { "--kernel" });
    // It begins anew when its guest resets itself, and ends at a triple fault.
    command.arg(&machine.kernel).args(["--cmdline", &format!("{} reboot=t", machine.cmdline)]);
    command.args(["--memory", &format!("size={}", u64::from(machine.memory_mib) << 20)]);
    command.args(["--cpu", &format!("count={}", machine.vcpus)]);
    if let Some(initrd) = &machine.initrd {
        command.arg("--initramfs").arg(initrd);
    }
    if let Some(disk) = &machine.disk {
        command.arg("--blk").arg(with(&with("file,path=".as_ref(), disk), ",readonly=true"));
    }
    if let Some(tap) = &machine.tap {
        command.args(["--net", &format!("tap,if={tap},mac=02:00:00:00:00:01,mtu=1500")]);
    }
    Ok(command)
}

fn firecracker(machine: &Machine, scratch: &Path) -> Result<Command> {
    if !machine.is_elf() {
        return Err("it takes ELF files only".into());
    }
    let mut boot = serde_json::json!({
        "kernel_image_path": machine.kernel,
        "boot_args": format!("{} reboot=k", machine.cmdline),
    });
    if let (Some(initrd), Some(boot)) = (&machine.initrd, boot.as_object_mut()) {
        boot.insert("initrd_path".into(), serde_json::json!(initrd));
    }
    let drive = |path: &PathBuf| {
        serde_json::json!({
            "drive_id": "root", "path_on_host": path, "is_root_device": false, "is_read_only": true
        })
    };
    let net = |tap: &String| serde_json::json!({ "iface_id": "net", "host_dev_name": tap });
    let config = serde_json::json!({
        "boot-source": boot,
        "machine-config": { "vcpu_count": machine.vcpus, "mem_size_mib": machine.memory_mib },
        "drives": machine.disk.iter().map(drive).collect::<Vec<_>>(),
        "network-interfaces": machine.tap.iter().map(net).collect::<Vec<_>>(),
    });
    let path = scratch.join("firecracker.json");
    fs::write(&path, config.to_string())?;
    let mut command = Contestant::Firecracker.binary()?;
    command.args(["--no-api", "--config-file"]).arg(path);
    Ok(command)
}

fn cloud_hypervisor(machine: &Machine) -> Result<Command> {
    let mut command = Contestant::CloudHypervisor.binary()?;
    command.arg("--kernel").arg(&machine.kernel).args(["--cmdline", &machine.cmdline]);
    command.args(["--cpus", &format!("boot={}", machine.vcpus)]);
    command.args(["--memory", &format!("size={}M", machine.memory_mib)]);
    command.args(["--serial", "tty", "--console", "off"]);
    if let Some(disk) = &machine.disk {
        command.arg("--disk").arg(with(&with("path=".as_ref(), disk), ",readonly=on"));
    }
    if let Some(tap) = &machine.tap {
        command.args(["--net", &format!("tap={tap}")]);
    }
    if let Some(initrd) = &machine.initrd {
        command.arg("--initramfs").arg(initrd);
    }
    Ok(command)
}

fn crosvm(machine: &Machine) -> Result<Command> {
    let mut command = Contestant::Crosvm.binary()?;
    command.args(["run", "--disable-sandbox", "--no-balloon", "--no-rng", "--no-usb"]);
    command.args(["--cpus", &machine.vcpus.to_string(), "--mem", &machine.memory_mib.to_string()]);
    command.args(["--serial", "type=stdout,hardware=serial,num=1", "-p", &machine.cmdline]);
    if let Some(initrd) = &machine.initrd {
        command.arg("-i").arg(initrd);
    }
    if let Some(disk) = &machine.disk {
        command.arg("--block").arg(with(&with("path=".as_ref(), disk), ",ro=true"));
    }
    if let Some(tap) = &machine.tap {
        command.args(["--net", &format!("tap-name={tap}")]);
    }
    command.arg(&machine.kernel);
    Ok(command)
}

fn with(text: &OsStr, more: impl AsRef<OsStr>) -> OsString {
    let mut text = text.to_owned();
    text.push(more);
    text
}
