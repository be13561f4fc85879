//! KVM's part of a machine, which is made anew when the machine starts anew.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::x86_64::{self, VcpuTemplate};
use crate::cpu::CpuModel;
use crate::error::KvmError;
use crate::machine::{GuestSpace, Lines};
use crate::memory::SharedRegions;
use crate::sys::signal;
use crate::virtio_slots::Slot;
use crate::{BuildError, host};

/// The VM, its vCPUs, and everything that is connected to it.
pub(crate) struct Hardware {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<VcpuFd>,
    pub(crate) address_bits: u32,
}

impl Hardware {
    pub(crate) fn create(
        space: &GuestSpace,
        (count, cpu): (u8, &CpuModel),
        slots: &[Slot],
        lines: &Lines,
        acpi: bool,
    ) -> Result<Self, BuildError> {
        let kvm = host::open_fit()?;
        let limit = host::max_vcpus(&kvm);
        if u32::from(count) > limit {
            return Err(BuildError::Vcpus { requested: u32::from(count), limit });
        }
        let vm = Arc::new(create_vm(&kvm)?);
        // Memory before KVM's irqchip: the other way round, the slot waits for an RCU grace period that the
        // irqchip's routing has begun, milliseconds on an idle host.
        add_memory(&vm, &space.memory)?;
        add_shared_regions(&kvm, &vm, space.memory.num_regions(), &space.shared)?;
        if cpu.msr_filter {
            x86_64::deny_msrs(&kvm, &vm)?;
        }
        lines.controllers.create(&vm)?;
        let template = VcpuTemplate::new(&kvm, count, !acpi, cpu)?;
        let vcpus = (0..count).map(|index| create_vcpu(&vm, &template, index));
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        lines.serial.connect(&vm)?;
        lines.power_button.iter().try_for_each(|button| button.connect(&vm))?;
        lines.own.iter().try_for_each(|line| line.connect(&vm))?;
        slots.iter().try_for_each(|slot| slot.connect(&vm))?;
        let address_bits = template.physical_address_bits();
        Ok(Self { vm, vcpus, address_bits })
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, KvmError> {
    loop {
        match kvm.create_vm() {
            // A signal that came while KVM set up its notifiers; the kernel asks to try again.
            Err(error) if error.errno() == libc::EINTR => {}
            result => return result.map_err(KvmError::ioctl("KVM_CREATE_VM")),
        }
    }
}

fn create_vcpu(vm: &VmFd, template: &VcpuTemplate<'_>, index: u8) -> Result<VcpuFd, KvmError> {
    let vcpu = vm.create_vcpu(u64::from(index)).map_err(KvmError::ioctl("KVM_CREATE_VCPU"))?;
    template.set_up(&vcpu, index)?;
    signal::unblock_kick_in_guest(&vcpu).map_err(KvmError::ioctl("KVM_SET_SIGNAL_MASK"))?;
    Ok(vcpu)
}

/// Gives KVM one memory slot for each region.
fn add_memory(vm: &VmFd, memory: &GuestMemoryMmap) -> Result<(), KvmError> {
    for (slot, region) in (0..).zip(memory.iter()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the region is a mapping of exactly this address and length. `Machine` owns it together
        // with `vm`, and every thread that runs a vCPU holds the `Machine`: no guest instruction runs
        // after the mapping is gone. Guest memory is only ever accessed as volatile memory.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

/// Gives KVM one read-only memory slot for each shared region, after the `taken` ones of memory.
fn add_shared_regions(
    kvm: &Kvm,
    vm: &VmFd,
    taken: usize,
    shared: &SharedRegions,
) -> Result<(), KvmError> {
    let first = u32::try_from(taken).unwrap_or(u32::MAX);
    for (slot, window) in (first..).zip(shared.iter()) {
        if !kvm.check_extension(Cap::ReadonlyMem) {
            return Err(KvmError::Capability("KVM_CAP_READONLY_MEM"));
        }
        let region = kvm_userspace_memory_region {
            slot,
            flags: KVM_MEM_READONLY,
            guest_phys_addr: window.range.start,
            memory_size: window.range.end.saturating_sub(window.range.start),
            userspace_addr: window.host_address(),
        };
        // SAFETY: as for memory: `Machine` owns the mapping, of exactly this address and length, and drops
        // it after `vm`. It can only be read.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(KvmError::ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}
