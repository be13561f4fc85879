//! The same machine, as each monitor wants to be told of it.

use std::fmt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use sparkler_benches::linux_machine::{Disk, LinuxMachine, has_firecracker, has_qemu};

use crate::Result;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    pub(crate) const ALL: [Self; 4] =
        [Self::Sparkler, Self::QemuThreads, Self::QemuUring, Self::Firecracker];

    /// All that this host has.
    pub(crate) fn all() -> Vec<Self> {
        let mut monitors = vec![Self::Sparkler];
        if has_qemu() {
            monitors.extend([Self::QemuThreads, Self::QemuUring]);
        }
        if has_firecracker() {
            monitors.push(Self::Firecracker);
        }
        monitors
    }

    /// Starts `machine`, with `image` as the disk to be measured.
    pub(crate) fn command(self, machine: &LinuxMachine, image: &Path) -> Result<Command> {
        let machine = |qemu_options| {
            let (name, path) = ("image", image.to_owned());
            machine.clone().disk(Disk { name, path, read_only: false, serial: "", qemu_options })
        };
        let qemu = |aio: &str| {
            let options = [format!(",aio={aio},cache=writeback"), ",iothread=thread".to_owned()];
            let mut command = machine(options).qemu();
            command.args(["-object", "iothread,id=thread"]);
            command
        };
        match self {
            Self::Sparkler => Ok(machine(Default::default()).sparkler()),
            Self::QemuThreads => Ok(qemu("threads")),
            Self::QemuUring => Ok(qemu("io_uring")),
            Self::Firecracker => machine(Default::default()).firecracker(&json!([])),
        }
    }
}
