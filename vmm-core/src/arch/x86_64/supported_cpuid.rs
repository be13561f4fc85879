use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Kvm;

use crate::error::KvmError;

/// KVM as it is loaded: the device and inode of its place in sysfs, which another load, maybe with other
/// parameters, does not share.
type Load = (u64, u64);

/// What KVM can show to a guest.
///
/// KVM asks the processor each time. Where that traps to a hypervisor below, it takes as long as a
/// third of all that a machine's set-up needs; so the answer is kept for this process's next machine.
pub(super) fn get(kvm: &Kvm) -> Result<CpuId, KvmError> {
    static KEPT: Mutex<Option<(Load, CpuId)>> = Mutex::new(None);
    let kept = || KEPT.lock().unwrap_or_else(PoisonError::into_inner);

    let load = current_load();
    let known = kept().as_ref().filter(|(of, _)| Some(*of) == load).map(|(_, cpuid)| cpuid.clone());
    if let Some(cpuid) = known {
        return Ok(cpuid);
    }
    let cpuid = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(KvmError::ioctl("KVM_GET_SUPPORTED_CPUID"))?;
    *kept() = load.map(|load| (load, cpuid.clone()));
    Ok(cpuid)
}

/// `None` where there is no sysfs: then nothing is kept.
fn current_load() -> Option<Load> {
    let metadata = std::fs::metadata("/sys/devices/virtual/misc/kvm").ok()?;
    Some((metadata.dev(), metadata.ino()))
}
