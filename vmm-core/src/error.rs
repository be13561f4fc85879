use std::io;

use sparkler_devices::BusError;
use sparkler_loader::acpi::AcpiError;
use sparkler_loader::mptable::MpTableError;
use sparkler_loader::{CmdlineError, LoadError};
use thiserror::Error;
use vmm_sys_util::errno;

use crate::cpu::CpuTemplateError;
use crate::{
    InterruptLineError, MemoryError, MemorySize, OwnDeviceError, PlacementError, RestartError,
};

/// Why [`VmBuilder::build`](crate::VmBuilder::build) made no machine.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The number of vCPUs is not one that a machine can have.
    #[error("{requested} vCPUs are not possible: ask for 1 to {limit}")]
    Vcpus {
        /// What was asked for.
        requested: u32,
        /// The most that this monitor or this host's KVM can give.
        limit: u32,
    },
    /// The memory size is not one that a machine can have.
    #[error("a memory of {requested} is not possible: ask for {min} to {max}")]
    Memory {
        /// What was asked for.
        requested: MemorySize,
        /// The least.
        min: MemorySize,
        /// The most that this monitor or this host's processor can address.
        max: MemorySize,
    },
    /// The memory size is not a whole number of pages.
    #[error("a memory of {requested} is not possible: it must be a multiple of 4 KiB")]
    MemoryAlignment {
        /// What was asked for.
        requested: MemorySize,
    },
    /// More virtio devices than a machine can have.
    #[error("{requested} virtio devices are not possible: at most {limit} are")]
    Devices {
        /// How many were asked for.
        requested: usize,
        /// The most.
        limit: usize,
    },
    /// Without ACPI the command line has to name the devices, and there is no room for that.
    #[error("without ACPI, the command line has no room to name {devices} virtio devices")]
    DevicesOnCmdline {
        /// How many there are.
        devices: usize,
        /// The limit that was met.
        source: CmdlineError,
    },
    /// A virtio device cannot be put on its transport.
    #[error(
        "cannot put the virtio device with index {index}, of type {device_type}, on its transport"
    )]
    VirtioDevice {
        /// How many were added before it.
        index: usize,
        /// Its type: 1 for a network card, 2 for a disk, ...
        device_type: u32,
        /// What is wrong with it, or what the host lacks.
        source: io::Error,
    },
    /// No kernel was given.
    #[error("no kernel was given: call VmBuilder::kernel")]
    NoKernel,
    /// The command line is not one that a kernel takes.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// Guest memory cannot be had as it was asked for.
    #[error(transparent)]
    GuestMemory(#[from] MemoryError),
    /// The machine's threads cannot run as they were asked to.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// Kernel, initrd or command line cannot be loaded into this memory.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The ACPI tables cannot be made.
    #[error("cannot make the ACPI tables")]
    Acpi(#[from] AcpiError),
    /// The MP table cannot be made.
    #[error("cannot make the MP table")]
    MpTable(#[from] MpTableError),
    /// What the vCPU starts with cannot be written to guest memory.
    #[error("cannot write page tables and reset vector to guest memory")]
    BootState(#[source] vm_memory::GuestMemoryError),
    /// A device of the caller's own cannot be where it was asked to be.
    #[error(transparent)]
    OwnDevice(#[from] OwnDeviceError),
    /// An interrupt line cannot be had as it was asked for.
    #[error(transparent)]
    InterruptLine(#[from] InterruptLineError),
    /// Two devices want the same addresses.
    #[error("cannot place a device")]
    Device(#[from] BusError),
    /// The CPU template is not for this host's processor.
    #[error(transparent)]
    CpuTemplate(#[from] CpuTemplateError),
    /// KVM is not there, not permitted, or refused something.
    #[error(transparent)]
    Kvm(#[from] KvmError),
}

/// KVM is not there, not permitted, or refused something.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no `/dev/kvm`.
    #[error(
        "there is no /dev/kvm: load the module kvm_intel or kvm_amd, and enable virtualization in \
         the firmware, or nested virtualization if this host is itself a virtual machine; in a \
         container, pass the device in (--device /dev/kvm)"
    )]
    Missing,
    /// `/dev/kvm` is there, but this user may not use it.
    #[error(
        "no permission on /dev/kvm: this user must be able to read and write it; if \
         `ls -l /dev/kvm` shows a group that can (usually kvm): usermod -aG kvm USER, then log in \
         again; otherwise, as root: setfacl -m u:USER:rw /dev/kvm"
    )]
    Permission,
    /// `/dev/kvm` cannot be opened for another reason.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// The kernel's KVM is not version 12, the stable API.
    #[error("/dev/kvm has API version {0}; version 12 is needed")]
    ApiVersion(i32),
    /// The kernel's KVM lacks something.
    #[error("this host's KVM lacks {0}; a newer or fuller kernel has it")]
    Capability(&'static str),
    /// There are more CPUID leaves than KVM takes: those of the host with those of the topology, or what
    /// [`VmBuilder::cpuid`](crate::VmBuilder::cpuid) made of them.
    #[error("there are too many CPUID leaves: KVM takes 256")]
    CpuidTooLong,
    /// An ioctl failed.
    #[error("{call} failed")]
    Ioctl {
        /// Its name in the KVM API.
        call: &'static str,
        /// The error.
        source: errno::Error,
    },
    /// An event file descriptor could not be made.
    #[error("cannot create an eventfd")]
    EventFd(#[source] io::Error),
}

impl KvmError {
    /// For `map_err`: the failure of the ioctl `call`.
    pub(crate) fn ioctl(call: &'static str) -> impl FnOnce(errno::Error) -> Self {
        move |source| Self::Ioctl { call, source }
    }
}

/// Why [`Vm::start`](crate::Vm::start) started nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StartError {
    /// A thread could not be started.
    #[error("cannot start the thread {name}")]
    Thread {
        /// Its name.
        name: String,
        /// The reason.
        source: io::Error,
    },
}

/// The monitor failed while the machine ran. Whatever a *guest* does is an
/// [`Outcome`](crate::Outcome) instead.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum RunError {
    /// An ioctl on a vCPU failed.
    #[error("{call} failed on vCPU {vcpu}")]
    Vcpu {
        /// Index of the vCPU.
        vcpu: u8,
        /// Name of the ioctl in the KVM API.
        call: &'static str,
        /// The error.
        source: errno::Error,
    },
    /// Signals could not be blocked in a vCPU thread.
    #[error("cannot block signals in the thread of vCPU {vcpu}")]
    Signals {
        /// Index of the vCPU.
        vcpu: u8,
        /// The error.
        source: errno::Error,
    },
    /// The thread of a vCPU cannot run where it was when the machine was built: the host has changed.
    #[error("cannot put the thread of vCPU {vcpu} in its place")]
    Placement {
        /// Index of the vCPU.
        vcpu: u8,
        /// The error.
        source: errno::Error,
    },
    /// The machine was reset and could not be started anew.
    #[error("the machine cannot be started anew after its reset")]
    Restart(#[from] RestartError),
    /// The call waits for the thread that makes it: one of the machine's own, in a device of the caller's. The
    /// machine has not failed.
    #[error("a device's own code cannot wait for its machine: make this call from another thread")]
    OwnThread,
    /// A thread of this machine panicked: a defect in the monitor, or in a device or console of the
    /// caller's own.
    #[error("the thread {thread} panicked: {message}")]
    Panicked {
        /// Its name, as in `vcpu-0`, `virtio-2` (by device type) or `console-out`.
        thread: String,
        /// What the panic said.
        message: String,
    },
}
