//! A machine that starts anew after a reset, in its place: KVM's part of it is made again, memory is
//! zeroed, devices are as at power-on, and the kernel is loaded once more.

use std::sync::Arc;

use thiserror::Error;
use vm_memory::GuestMemoryBackend;

use crate::machine::{Machine, lock};
use crate::timeline::{Milestone, Recorder};
use crate::{BuildError, sys};

/// What happens when the guest resets the machine (by the ACPI reset register or the i8042), or the host
/// does ([`VmHandle::reset`](crate::VmHandle::reset)). A crash, such as a triple fault, is no reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum ResetAction {
    /// The machine ends with [`Outcome::Reset`](crate::Outcome::Reset).
    #[default]
    End,
    /// The machine starts anew from its kernel, in its place: the process keeps its threads, devices,
    /// console and memory, which is zeroed, also where others share it. Kernel and initrd are kept for it
    /// as long as the machine is there. A guest may do so again and again, and each time costs the host
    /// as much as a new machine.
    Restart,
}

/// Why a machine could not be started anew: what [`VmBuilder::build`](crate::VmBuilder::build) would say.
#[derive(Debug, Clone, Error)]
#[error(transparent)]
pub struct RestartError(Arc<BuildError>);

impl RestartError {
    /// The error.
    #[must_use]
    pub fn get(&self) -> &BuildError {
        &self.0
    }
}

/// Of one and the same failure.
impl PartialEq for RestartError {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for RestartError {}

impl Machine {
    /// Brings the machine back into the state in which it was built. All vCPUs are parked. Gives up if
    /// `has_ended`: then nothing is left that could run.
    pub(crate) fn restart(
        &self,
        recorder: &Recorder,
        has_ended: &dyn Fn() -> bool,
    ) -> Result<(), RestartError> {
        let Some(blueprint) = &self.blueprint else { return Ok(()) };
        let (mut vm, mut vcpus) = (lock(&self.vm), self.vcpus.iter().map(lock).collect::<Vec<_>>());
        self.ports.reset();
        self.mmio.reset();
        // The old ones first: an interrupt can be connected to one machine at a time.
        vcpus.iter_mut().for_each(|vcpu| **vcpu = None);
        *vm = None;
        self.space.memory.iter().for_each(|region| sys::memory::clear(region, has_ended));
        let failed = |error| RestartError(Arc::new(error));
        blueprint.refill(&self.space.memory, has_ended).map_err(|error| failed(error.into()))?;
        if has_ended() {
            return Ok(());
        }
        let slots = self.virtio.slots();
        let hardware = match blueprint.boot(&self.space, slots, &self.lines, |_| {}, has_ended) {
            Ok(hardware) => hardware,
            Err(_) if has_ended() => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        for (vcpu, new) in vcpus.iter_mut().zip(hardware.vcpus) {
            **vcpu = Some(new);
        }
        *vm = Some(hardware.vm);
        recorder.record(Milestone::Restarted);
        Ok(())
    }
}
