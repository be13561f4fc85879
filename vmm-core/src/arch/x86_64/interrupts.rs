//! The way from a device to the vCPUs' local APICs, which are KVM's.

use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap, kvm_msi, kvm_pit_config,
};
use kvm_ioctls::VmFd;
use sparkler_devices::io_apic::{IoApic, IoApicInput, Message, MessageSink};
use sparkler_devices::{BusDevice, Interrupt};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::error::KvmError;

/// Where KVM may keep three pages of its own (Intel without "unrestricted guest"): in the hole, out of
/// the way of everything else.
const KVM_TSS: usize = 0xfffb_d000;

/// A machine's interrupt controllers.
#[derive(Debug)]
pub(crate) enum Interrupts {
    /// For kernels with ACPI: an I/O APIC of our own, so that KVM has no more than the local APICs.
    /// To remove an I/O APIC and two PICs from KVM takes four grace periods of the host's kernel:
    /// 15 ms on an idle host, where the rest of a machine is gone in 0.2 ms.
    Own(Arc<IoApic>, CurrentVm),
    /// For kernels without: all of a PC's, the PIT included, in KVM.
    Kvm,
}

impl Interrupts {
    pub(crate) fn new(acpi: bool) -> Self {
        if !acpi {
            return Self::Kvm;
        }
        let vm = CurrentVm::default();
        Self::Own(Arc::new(IoApic::new(Box::new(vm.clone()))), vm)
    }

    /// What a device pulls to raise global system interrupt `gsi`.
    pub(crate) fn line(&self, gsi: u32) -> io::Result<Line> {
        match self {
            Self::Own(io_apic, _) => Ok(Line::Own(IoApicInput::new(Arc::clone(io_apic), gsi))),
            Self::Kvm => {
                let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
                Ok(Line::Kvm(Arc::new(event), gsi))
            }
        }
    }

    /// What sits on the MMIO bus.
    pub(crate) fn device(&self) -> Option<Arc<dyn BusDevice>> {
        match self {
            Self::Own(io_apic, _) => Some(Arc::clone(io_apic) as _),
            Self::Kvm => None,
        }
    }

    /// KVM's part of it, which must be there before the first vCPU.
    pub(crate) fn create(&self, vm: &Arc<VmFd>) -> Result<(), KvmError> {
        vm.set_tss_address(KVM_TSS).map_err(KvmError::ioctl("KVM_SET_TSS_ADDR"))?;
        match self {
            Self::Own(_, current) => {
                let local_apics_only =
                    kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() };
                vm.enable_cap(&local_apics_only)
                    .map_err(KvmError::ioctl("KVM_ENABLE_CAP (KVM_CAP_SPLIT_IRQCHIP)"))?;
                current.set(vm);
            }
            Self::Kvm => {
                vm.create_irq_chip().map_err(KvmError::ioctl("KVM_CREATE_IRQCHIP"))?;
                // Port 0x61 answers as if there were a speaker: kernels calibrate their clock through it.
                let config = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
                vm.create_pit2(config).map_err(KvmError::ioctl("KVM_CREATE_PIT2"))?;
            }
        }
        Ok(())
    }
}

/// Where an I/O APIC sends its messages: the local APICs of the VM, once there is one, and as long as it is
/// there. A machine that starts anew gets another one.
#[derive(Debug, Clone, Default)]
pub(crate) struct CurrentVm(Arc<Mutex<Weak<VmFd>>>);

impl CurrentVm {
    fn set(&self, vm: &Arc<VmFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(vm);
    }

    fn get(&self) -> Option<Arc<VmFd>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }
}

impl MessageSink for CurrentVm {
    fn send(&self, message: Message) -> io::Result<()> {
        let vm = self.get().ok_or(io::ErrorKind::NotConnected)?;
        let msi = kvm_msi { address_lo: message.address, data: message.data, ..Default::default() };
        match vm.signal_msi(msi) {
            // Nobody took it: the guest addressed nobody, which is its affair.
            Err(error) if error.errno() == libc::EPERM => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }
}

/// An input of the interrupt controllers.
#[derive(Debug, Clone)]
pub(crate) enum Line {
    Own(IoApicInput),
    Kvm(Arc<EventFd>, u32),
}

impl Line {
    /// Connects it, now that there is a VM.
    pub(crate) fn connect(&self, vm: &VmFd) -> Result<(), KvmError> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Kvm(event, gsi) => {
                vm.register_irqfd(event, *gsi).map_err(KvmError::ioctl("KVM_IRQFD"))
            }
        }
    }
}

impl Interrupt for Line {
    fn trigger(&self) -> io::Result<()> {
        match self {
            Self::Own(input) => input.trigger(),
            Self::Kvm(event, _) => event.trigger(),
        }
    }
}
