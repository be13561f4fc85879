//! From what was asked for to the machine.

use std::sync::Arc;

use sparkler_devices::{Bus, NoRtc};

use super::VmBuilder;
use crate::control::Control;
use crate::error::KvmError;
use crate::hardware::Hardware;
use crate::machine::{GuestSpace, Lines, Machine, SerialConsole, ports};
use crate::memory::{Ranges, RegionKind, SharedRegions};
use crate::placement::Threads;
use crate::restart::ResetAction;
use crate::timeline::{Milestone, Recorder};
use crate::virtio_slots::{self, Slot};
use crate::{BuildError, Console, MemoryError, Vm};

impl VmBuilder {
    /// Makes the machine: checks every setting, sets up KVM, loads the kernel. No guest instruction
    /// runs and no thread is left behind.
    ///
    /// # Errors
    /// [`BuildError`] names the first setting that cannot be had, with its value and what would be
    /// right. Nothing remains of a machine that could not be built.
    pub fn build(mut self) -> Result<Vm, BuildError> {
        let recorder = Recorder::start();
        let count = self.blueprint.checked_vcpus()?;
        self.blueprint.check_memory()?;
        self.check_devices()?;
        let devices = std::mem::take(&mut self.devices.0);
        let threads = Arc::new(self.placement.resolve(count)?);
        let ranges = self.checked_ranges()?;
        self.own_devices.check(self.blueprint.acpi, &ranges)?;
        self.own_lines.check()?;
        let shared = std::mem::take(&mut self.shared_regions);
        if self.blueprint.kernel.is_none() {
            return Err(BuildError::NoKernel);
        }
        let memory = self.blueprint.memory_backing.map(&ranges)?;
        let space = GuestSpace { memory, shared: SharedRegions::map(shared)?, ranges };
        let lines = Lines::new(self.blueprint.acpi, &self.own_lines).map_err(KvmError::EventFd)?;
        let slots =
            virtio_slots::place(devices, &space.memory, &lines.controllers, &self.own_lines)?;
        recorder.record(Milestone::MemoryMapped);
        let record = |milestone| recorder.record(milestone);
        let hardware = self.blueprint.boot(&space, &slots, &lines, record, &|| false)?;
        let control = Arc::new(Control::new(count, recorder).map_err(KvmError::EventFd)?);
        slots.iter().for_each(|slot| slot.place_threads(&threads));
        self.assemble(hardware, space, slots, lines, threads, control)
    }

    fn check_devices(&self) -> Result<(), BuildError> {
        let (requested, limit) = (self.devices.0.len(), Self::MAX_DEVICES);
        if requested > limit { Err(BuildError::Devices { requested, limit }) } else { Ok(()) }
    }

    /// Where memory and shared regions lie.
    fn checked_ranges(&self) -> Result<Ranges, MemoryError> {
        let mut ranges = Ranges::new(self.blueprint.memory);
        for (start, size) in &self.memory_regions {
            ranges.add(RegionKind::Extra, *start, *size)?;
        }
        for (start, region) in &self.shared_regions {
            ranges.add(RegionKind::Shared, *start, region.size())?;
        }
        Ok(ranges)
    }

    /// Puts devices and vCPUs together.
    fn assemble(
        mut self,
        hardware: Hardware,
        space: GuestSpace,
        slots: Vec<Slot>,
        lines: Lines,
        threads: Arc<Threads>,
        control: Arc<Control>,
    ) -> Result<Vm, BuildError> {
        let console = self.console.take();
        let serial =
            SerialConsole::new(lines.serial.clone(), console.is_some(), Console::BUFFER_SIZE)
                .map_err(KvmError::EventFd)?;
        let mut ports = ports(&serial.port, &control, self.on_reset)?;
        let mut mmio = Bus::new();
        self.own_devices
            .check_below(1u64.checked_shl(hardware.address_bits).unwrap_or(u64::MAX))?;
        self.own_devices.insert(&mut ports, &mut mmio)?;
        if !self.blueprint.acpi {
            // Unless the caller brought a clock.
            let _ = ports.insert(NoRtc::PORT.into(), NoRtc::LENGTH.into(), Arc::new(NoRtc));
        }
        self.own_lines.connect(&lines.own)?;
        slots.iter().for_each(|slot| slot.report_panics(&control));
        // Kept only where it may be wanted again: there may be a large kernel in it.
        let restart = self.on_reset == ResetAction::Restart;
        let blueprint = restart.then_some(self.blueprint);
        let machine =
            Machine::new((ports, mmio), serial, slots, hardware, space, lines, blueprint)?;
        control.recorder().record(Milestone::Built);
        Ok(Vm::new(machine, console, threads, control))
    }
}
