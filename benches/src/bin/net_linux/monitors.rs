//! The same machine, as each monitor wants to be told of it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sparkler_benches::linux_machine::{LinuxMachine, has_firecracker, has_qemu};

use crate::{Result, TAP};

const MAC: &str = "02:00:00:00:00:01";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) const ALL: [Self; 5] =
        [Self::Sparkler, Self::SparklerVhost, Self::Qemu, Self::QemuVhost, Self::Firecracker];

    /// All that this host has.
    pub(crate) fn all() -> Vec<Self> {
        let mut monitors = vec![Self::Sparkler];
        let vhost = Path::new("/dev/vhost-net").exists();
        if vhost {
            monitors.push(Self::SparklerVhost);
        } else {
            println!("there is no /dev/vhost-net: nobody has vhost");
        }
        if has_qemu() {
            monitors.push(Self::Qemu);
            if vhost {
                monitors.push(Self::QemuVhost);
            }
        }
        if has_firecracker() {
            monitors.push(Self::Firecracker);
        }
        monitors
    }

    /// Starts `machine`, with a tap.
    pub(crate) fn command(self, machine: &LinuxMachine) -> Result<Command> {
        match self {
            Self::Sparkler => Ok(sparkler(machine, "")),
            Self::SparklerVhost => Ok(sparkler(machine, ",vhost")),
            Self::Qemu => Ok(qemu(machine, "off")),
            Self::QemuVhost => Ok(qemu(machine, "on")),
            Self::Firecracker => machine.firecracker(&json!([
                { "iface_id": "eth0", "guest_mac": MAC, "host_dev_name": TAP },
            ])),
        }
    }
}

fn sparkler(machine: &LinuxMachine, option: &str) -> Command {
    let mut command = machine.sparkler();
    command.args(["--net", &format!("tap={TAP},mac={MAC}{option}")]);
    command
}

fn qemu(machine: &LinuxMachine, vhost: &str) -> Command {
    let mut command = machine.qemu();
    let tap = format!("tap,id=net,ifname={TAP},script=no,downscript=no,vhost={vhost}");
    command.args(["-netdev", &tap]);
    command.args(["-device", &format!("virtio-net-device,netdev=net,mac={MAC}")]);
    command
}
