#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod arch;
mod blueprint;
mod builder;
mod console;
mod control;
pub mod cpu;
mod error;
mod handle;
mod hardware;
pub mod host;
mod interrupt_line;
mod machine;
mod memory;
mod outcome;
mod own_devices;
mod placement;
mod restart;
mod running;
mod stats;
mod sync;
mod sys;
mod timeline;
mod vcpu;
mod virtio_slots;
mod vm;

/// Virtio devices, and the trait by which you bring your own.
pub mod virtio {
    pub use sparkler_devices::virtio::*;
}

/// The causes that a [`LoadError`] or a [`BuildError`] names.
pub mod loader {
    #[cfg(feature = "kernel-cache")]
    pub use sparkler_loader::CacheError;
    pub use sparkler_loader::acpi::AcpiError;
    pub use sparkler_loader::mptable::MpTableError;
    pub use sparkler_loader::{BzImageError, Compression, ElfError, ImageName};
}

/// The built-in guest, with the feature `guest`.
#[cfg(feature = "guest")]
pub use sparkler_guest as guest;

pub use sparkler_devices::BusError;
pub use sparkler_loader::{Cmdline, CmdlineError, ImageError, Initrd, Kernel, LoadError, Protocol};

/// Guest memory and its addresses, as virtio devices and some errors have them.
pub use vm_memory;
/// What the host's kernel answered to a system call: the number and its meaning.
pub use vmm_sys_util::errno::Error as OsError;

pub use crate::builder::VmBuilder;
pub use crate::console::Console;
pub use crate::error::{BuildError, KvmError, RunError, StartError};
pub use crate::handle::{ControlError, VmHandle, VmState};
pub use crate::interrupt_line::{InterruptLine, InterruptLineError};
pub use crate::memory::{
    HugePageSize, MemoryBacking, MemoryError, MemorySize, ParseMemorySizeError, RegionKind,
    SharedRegion, SharedRegionError,
};
pub use crate::outcome::{Crash, CrashReason, Outcome};
pub use crate::own_devices::{AddressSpace, OwnDeviceError};
pub use crate::placement::{CpuSet, ParseCpuSetError, Placement, PlacementError};
pub use crate::restart::{ResetAction, RestartError};
pub use crate::running::RunningVm;
pub use crate::stats::{DeviceStats, ExitStats, Stats};
pub use crate::timeline::{Event, Milestone, Timeline};
pub use crate::vm::Vm;
pub use sparkler_devices::{BusDevice, Interrupt, THREAD_STACK_SIZE};
