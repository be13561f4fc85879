//! What this machine can do for a virtual machine.

use std::fmt;
use std::fs::File;
use std::path::Path;

/// The kinds of host that a test can need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kvm {
    /// `/dev/kvm` on hardware virtualization: runs any guest.
    Hardware,
    /// `/dev/kvm` without hardware virtualization: runs the built-in guest, but no stock Linux.
    Pvm,
    /// No `/dev/kvm`, or none that we may open.
    None,
}

impl Kvm {
    /// Looks at this host.
    pub(crate) fn probe() -> Self {
        if File::options().read(true).write(true).open("/dev/kvm").is_err() {
            return Self::None;
        }
        if Path::new("/sys/module/kvm_pvm").exists() {
            return Self::Pvm;
        }
        Self::Hardware
    }
}

impl fmt::Display for Kvm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware KVM",
            Self::Pvm => "PVM",
            Self::None => "no usable /dev/kvm",
        })
    }
}
