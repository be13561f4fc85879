//! x86-64: how a vCPU starts, and what its CPUID says.

mod baseline;
mod boot_state;
mod cpuid;
mod cpuid_entry;
mod interrupts;
mod local_apic;
mod msr;
mod msr_filter;
mod supported_cpuid;
mod template;

use std::ops::RangeInclusive;

use kvm_bindings::CpuId;
use kvm_ioctls::{Cap, Kvm, VcpuFd};
use sparkler_loader::Entry;

pub(crate) use self::boot_state::{write_page_tables, write_reset_vector};
pub use self::cpuid_entry::CpuidEntry;
pub(crate) use self::interrupts::{Interrupts, Line};
pub(crate) use self::msr_filter::deny_msrs;
pub use self::msr_filter::{DENIED_MSRS, DeniedMsrs};
pub use self::template::{CpuTemplate, CpuTemplateError, Missing};
use crate::BuildError;
use crate::cpu::CpuModel;
use crate::error::KvmError;

/// The ports at which the legacy interrupt controllers answer, or would.
pub(crate) const PORTS_OF_PICS: [RangeInclusive<u64>; 3] =
    [0x20..=0x21, 0xa0..=0xa1, 0x4d0..=0x4d1];
/// The ports at which KVM's PIT answers, if there is one, and its gate.
pub(crate) const PORTS_OF_PIT: [RangeInclusive<u64>; 2] = [0x40..=0x43, 0x61..=0x61];
/// I/O APIC, local APICs, and what KVM keeps in the hole (TSS, identity map).
pub(crate) const ADDRESSES_OF_KVM: [RangeInclusive<u64>; 3] =
    [0xfec0_0000..=0xfec0_0fff, 0xfee0_0000..=0xfee0_0fff, 0xfffb_c000..=0xfffc_0000];

/// What all vCPUs of a machine have in common.
pub(crate) struct VcpuTemplate<'a> {
    /// What there is to show, under the template.
    supported: CpuId,
    missing: Vec<Missing>,
    model: &'a CpuModel,
    count: u8,
    virtual_wire: bool,
    tsc_deadline_timer: bool,
}

impl<'a> VcpuTemplate<'a> {
    /// Asks KVM what it can show to a guest as `model` wants it. `virtual_wire` routes the legacy interrupt controller
    /// through the local APICs, which only kernels without ACPI use.
    pub(crate) fn new(
        kvm: &Kvm,
        count: u8,
        virtual_wire: bool,
        model: &'a CpuModel,
    ) -> Result<Self, BuildError> {
        let mut supported = supported_cpuid::get(kvm)?;
        let mut missing = Vec::new();
        if model.template != CpuTemplate::Host {
            let (entries, lacking) = model.template.apply(cpuid_entry::from_kvm(&supported))?;
            supported = cpuid_entry::to_kvm(&entries).ok_or(KvmError::CpuidTooLong)?;
            missing = lacking;
        }
        let tsc_deadline_timer = kvm.check_extension(Cap::TscDeadlineTimer);
        Ok(Self { supported, missing, model, count, virtual_wire, tsc_deadline_timer })
    }

    /// The width of physical addresses, in bits.
    pub(crate) fn physical_address_bits(&self) -> u32 {
        cpuid::physical_address_bits(&self.supported)
    }

    /// What the template has and the host has not.
    pub(crate) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// What CPUID says on vCPU `index`.
    pub(crate) fn cpuid_of(&self, index: u8) -> Result<Vec<CpuidEntry>, KvmError> {
        self.cpuid(index).map(|cpuid| cpuid_entry::from_kvm(&cpuid))
    }

    fn cpuid(&self, index: u8) -> Result<CpuId, KvmError> {
        let topology = cpuid::Topology { index, count: self.count };
        let mut cpuid = cpuid::for_vcpu(&self.supported, topology, self.tsc_deadline_timer);
        if let (Some(cpuid), true) = (&mut cpuid, self.model.msr_filter) {
            cpuid::hide_processor_trace(cpuid);
        }
        if let (Some(own), Some(hook)) = (&cpuid, &self.model.hook) {
            let mut entries = cpuid_entry::from_kvm(own);
            hook(index, &mut entries);
            cpuid = cpuid_entry::to_kvm(&entries);
        }
        cpuid.ok_or(KvmError::CpuidTooLong)
    }

    /// Sets up vCPU `index`; the first one starts at `entry`, the others wait to be started by it.
    pub(crate) fn set_up(&self, vcpu: &VcpuFd, index: u8) -> Result<(), KvmError> {
        vcpu.set_cpuid2(&self.cpuid(index)?).map_err(KvmError::ioctl("KVM_SET_CPUID2"))?;
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
