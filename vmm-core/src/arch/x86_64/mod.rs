//! x86-64: how a vCPU starts, and what its CPUID says.

mod boot_state;
mod cpuid;
mod local_apic;
mod msr;
mod supported_cpuid;

use kvm_bindings::{CpuId, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use sparkler_loader::Entry;
use vmm_sys_util::eventfd::EventFd;

pub(crate) use self::boot_state::{write_page_tables, write_reset_vector};
use crate::error::KvmError;

/// Where KVM may keep three pages of its own (Intel without "unrestricted guest"): in the hole, out of
/// the way of everything else.
const KVM_TSS: usize = 0xfffb_d000;

/// The interrupt controllers and, for kernels that have no better timer, the PIT. They must be there
/// before the first vCPU.
pub(crate) fn create_irqchip(vm: &VmFd, with_pit: bool) -> Result<(), KvmError> {
    vm.set_tss_address(KVM_TSS).map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
    vm.create_irq_chip().map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
    if with_pit {
        // Port 0x61 answers as if there were a speaker: kernels calibrate their clock through it.
        let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(config).map_err(KvmError::ioctl("KVM_CREATE_PIT2"))?;
    }
    Ok(())
}

/// Connects `interrupt` to input `gsi` of the interrupt controllers.
pub(crate) fn connect_interrupt(vm: &VmFd, interrupt: &EventFd, gsi: u32) -> Result<(), KvmError> {
    vm.register_irqfd(interrupt, gsi).map_err(KvmError::ioctl("KVM_IRQFD"))
}

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
        if self.virtual_wire {
            local_apic::set_virtual_wire(vcpu)?;
        } else if index == 0 {
            local_apic::mask_legacy_interrupts(vcpu)?;
        }
        Ok(())
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
