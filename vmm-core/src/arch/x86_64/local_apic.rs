use kvm_bindings::kvm_lapic_state;
use kvm_ioctls::VcpuFd;

use crate::error::KvmError;

/// Byte offsets of the local vector table entries in the APIC's register page.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_MODE_NMI: u32 = 0b100 << 8;
const DELIVERY_MODE_EXTINT: u32 = 0b111 << 8;

/// Virtual-wire mode (MultiProcessor Specification 1.4, 3.6.2.2): the legacy interrupt controller's
/// output goes through LINT0, NMI through LINT1.
pub(super) fn set_virtual_wire(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let mut apic = vcpu.get_lapic().map_err(KvmError::ioctl("KVM_GET_LAPIC"))?;
    set_register(&mut apic, LVT_LINT0, DELIVERY_MODE_EXTINT);
    set_register(&mut apic, LVT_LINT1, DELIVERY_MODE_NMI);
    vcpu.set_lapic(&apic).map_err(KvmError::ioctl("KVM_SET_LAPIC"))
}

fn set_register(apic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in apic.regs.iter_mut().skip(offset).zip(value.to_le_bytes()) {
        *register = i8::from_ne_bytes([byte]);
    }
}
