use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::error::KvmError;

const IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// Branch trace and precise event sampling are not there. KVM resets the register to these two.
const BTS_UNAVAILABLE: u64 = 1 << 11;
const PEBS_UNAVAILABLE: u64 = 1 << 12;
const MTRR_DEFAULT_TYPE: u32 = 0x2ff;
const MTRR_ENABLE: u64 = 1 << 11;
const WRITE_BACK: u64 = 6;

/// The model-specific registers that firmware sets before it hands over to a kernel: `rep movsb` is
/// fast, and memory is cached. Everything else starts as KVM resets it.
pub(super) fn set_up(vcpu: &VcpuFd) -> Result<(), KvmError> {
    let entry = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries = [
        entry(MTRR_DEFAULT_TYPE, MTRR_ENABLE | WRITE_BACK),
        entry(IA32_MISC_ENABLE, FAST_STRINGS | BTS_UNAVAILABLE | PEBS_UNAVAILABLE),
    ];
    let Ok(msrs) = Msrs::from_entries(&entries) else { return Ok(()) };
    let set = vcpu.set_msrs(&msrs).map_err(KvmError::ioctl("KVM_SET_MSRS"))?;
    if set < entries.len() {
        // KVM stops at the first that the processor lacks. Guests do without both.
        log::debug!("KVM took {set} of {} MSRs", entries.len());
    }
    Ok(())
}
