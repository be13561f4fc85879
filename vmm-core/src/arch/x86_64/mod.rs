//! x86-64: how a vCPU starts, and what its CPUID says.

mod boot_state;
mod cpuid;
mod interrupts;
mod local_apic;
mod msr;
mod supported_cpuid;

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use sparkler_loader::Entry;

pub(crate) use self::boot_state::{write_page_tables, write_reset_vector};
pub(crate) use self::interrupts::{Interrupts, Line};
use crate::error::KvmError;

/// What all vCPUs of a machine have in common.
pub(crate) struct VcpuTemplate {
    supported: CpuId,
    count: u8,
    virtual_wire: bool,
    tsc_deadline_timer: bool,
}

impl VcpuTemplate {
    /// Asks KVM what it can show to a guest. `virtual_wire` routes the legacy interrupt controller
    /// through the local APICs, which only kernels without ACPI use.
    pub(crate) fn new(kvm: &Kvm, count: u8, virtual_wire: bool) -> Result<Self, KvmError> {
        let supported = supported_cpuid::get(kvm)?;
        let tsc_deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { supported, count, virtual_wire, tsc_deadline_timer })
    }

    /// The width of physical addresses, in bits.
    pub(crate) fn physical_address_bits(&self) -> u32 {
        cpuid::physical_address_bits(&self.supported)
    }

    /// Sets up vCPU `index`; the first one starts at `entry`, the others wait to be started by it.
    pub(crate) fn set_up(&self, vcpu: &VcpuFd, index: u8) -> Result<(), KvmError> {
        let topology = cpuid::Topology { index, count: self.count };
        let cpuid = cpuid::for_vcpu(&self.supported, topology, self.tsc_deadline_timer)
            .ok_or(KvmError::CpuidTooLong)?;
        vcpu.set_cpuid2(&cpuid).map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
        msr::set_up(vcpu)?;
        if self.virtual_wire { local_apic::set_virtual_wire(vcpu) } else { Ok(()) }
    }
}

/// Puts the boot vCPU where the kernel's boot protocol wants it.
pub(crate) fn enter_at(vcpu: &VcpuFd, entry: &Entry) -> Result<(), KvmError> {
    boot_state::set_up(vcpu, entry)
}

/// The APIC id of each vCPU: its index.
pub(crate) fn apic_ids(count: u8) -> Vec<u32> {
    (0..u32::from(count)).collect()
}
