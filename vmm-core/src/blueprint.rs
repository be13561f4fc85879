//! What a machine is made from, as often as it starts: its size, its processor, and what the guest finds
//! in memory.

use std::thread;

use sparkler_devices::power;
use sparkler_devices::serial::SerialPort;
use sparkler_loader::acpi::{self, AcpiConfig, Uart, VirtioMmio};
use sparkler_loader::{BootConfig, Cmdline, Entry, Initrd, Kernel, mptable};
use vm_memory::GuestMemoryMmap;

use crate::arch::x86_64;
use crate::cpu::CpuModel;
use crate::hardware::Hardware;
use crate::machine::{GuestSpace, Lines};
use crate::memory::Ranges;
use crate::sys::kernel_pages::KernelPages;
use crate::timeline::Milestone;
use crate::virtio_slots::Slot;
use crate::{BuildError, MemoryBacking, MemoryError, MemorySize, VmBuilder};

/// Bytes of kernel and initrd from which on they are loaded while another thread sets up KVM. Reading them
/// takes as long as the start of a thread, 0.1 ms and more.
const WORTH_A_THREAD: u64 = 256 << 10;

/// Everything but the devices.
#[derive(Debug)]
pub(crate) struct Blueprint {
    pub(crate) vcpus: u32,
    pub(crate) memory: MemorySize,
    pub(crate) memory_backing: MemoryBacking,
    pub(crate) cpu: CpuModel,
    pub(crate) kernel: Option<Kernel>,
    pub(crate) initrd: Option<Initrd>,
    pub(crate) cmdline: String,
    pub(crate) acpi: bool,
}

impl Default for Blueprint {
    fn default() -> Self {
        Self {
            vcpus: 1,
            memory: MemorySize::mib(256),
            memory_backing: MemoryBacking::default(),
            cpu: CpuModel::default(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            acpi: true,
        }
    }
}

impl Blueprint {
    /// Memory that was cleared is as when it was new. Gives up if `has_ended`.
    pub(crate) fn refill(
        &self,
        memory: &GuestMemoryMmap,
        has_ended: &dyn Fn() -> bool,
    ) -> Result<(), MemoryError> {
        self.memory_backing.fill(memory, has_ended)
    }

    /// Loads the kernel into memory, which is fresh, and makes KVM's part of the machine, which is ready to
    /// run then. Gives up, with some error, if `has_ended`.
    pub(crate) fn boot(
        &self,
        space: &GuestSpace,
        slots: &[Slot],
        lines: &Lines,
        record: impl Fn(Milestone) + Sync,
        has_ended: &dyn Fn() -> bool,
    ) -> Result<Hardware, BuildError> {
        let kernel = self.kernel.as_ref().ok_or(BuildError::NoKernel)?;
        let count = self.checked_vcpus()?;
        let cmdline = self.whole_cmdline(slots)?;
        let load = || {
            let entry = self.load(kernel, &cmdline, space, (count, slots), has_ended);
            record(Milestone::KernelLoaded);
            entry
        };
        let create = || {
            let hardware = Hardware::create(space, (count, &self.cpu), slots, lines, self.acpi);
            record(Milestone::KvmReady);
            hardware
        };
        let (entry, hardware) = self.both(load, create);
        // A mistake of the caller is told before what the host lacks.
        let entry = entry?;
        let hardware = hardware?;
        self.check_address_width(&hardware, &space.ranges)?;
        if let Some(first) = hardware.vcpus.first() {
            x86_64::enter_at(first, &entry)?;
        }
        Ok(hardware)
    }

    /// Does both, the one beside the other if there is enough to load that a thread is worth its start.
    fn both<A, B: Send>(&self, load: impl FnOnce() -> A, create: impl Fn() -> B + Sync) -> (A, B) {
        let kernel = self.kernel.as_ref().map_or(0, Kernel::bytes_to_read);
        let initrd = self.initrd.as_ref().map_or(0, Initrd::bytes_to_read);
        if kernel.saturating_add(initrd) < WORTH_A_THREAD {
            return (load(), create());
        }
        thread::scope(|scope| {
            let thread =
                thread::Builder::new().name("kvm-setup".to_owned()).spawn_scoped(scope, &create);
            let loaded = load();
            let created = match thread {
                Ok(thread) => {
                    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                }
                // No thread to be had: then one after the other.
                Err(_) => create(),
            };
            (loaded, created)
        })
    }

    pub(crate) fn checked_vcpus(&self) -> Result<u8, BuildError> {
        let illegal = BuildError::Vcpus { requested: self.vcpus, limit: VmBuilder::MAX_VCPUS };
        match u8::try_from(self.vcpus) {
            Ok(count) if (1..=VmBuilder::MAX_VCPUS).contains(&self.vcpus) => Ok(count),
            _ => Err(illegal),
        }
    }

    pub(crate) fn check_memory(&self) -> Result<(), BuildError> {
        let (requested, min, max) = (self.memory, MemorySize::MIN, MemorySize::MAX);
        if requested < min || requested > max {
            return Err(BuildError::Memory { requested, min, max });
        }
        if !requested.as_bytes().is_multiple_of(4096) {
            return Err(BuildError::MemoryAlignment { requested });
        }
        Ok(())
    }

    /// The command line as given; without ACPI, that is also where the kernel learns of the devices.
    fn whole_cmdline(&self, slots: &[Slot]) -> Result<Cmdline, BuildError> {
        let own = Cmdline::new(&self.cmdline)?;
        if self.acpi {
            return Ok(own);
        }
        // In front: what stands behind a `--` is for init.
        let mut words: Vec<_> = slots.iter().map(Slot::parameter).collect();
        words.push(self.cmdline.clone());
        Cmdline::new(&words.join(" "))
            .map_err(|source| BuildError::DevicesOnCmdline { devices: slots.len(), source })
    }

    /// The processor must be able to address the end of memory.
    fn check_address_width(&self, hardware: &Hardware, ranges: &Ranges) -> Result<(), BuildError> {
        let end = 1u64.checked_shl(hardware.address_bits).unwrap_or(u64::MAX);
        if ranges.end_of_memory() <= end {
            return Ok(ranges.check_added_below(end)?);
        }
        let max = MemorySize::gib((end >> 30).saturating_sub(1));
        Err(BuildError::Memory { requested: self.memory, min: MemorySize::MIN, max })
    }

    /// Everything that the guest finds in memory when it starts.
    fn load(
        &self,
        kernel: &Kernel,
        cmdline: &Cmdline,
        space: &GuestSpace,
        (vcpus, slots): (u8, &[Slot]),
        has_ended: &dyn Fn() -> bool,
    ) -> Result<Entry, BuildError> {
        let GuestSpace { memory, ranges, .. } = space;
        let apic_ids = x86_64::apic_ids(vcpus);
        let rsdp = if self.acpi {
            let virtio_mmio: Vec<_> = slots.iter().map(Slot::place).collect();
            Some(acpi::write(memory, &acpi_config(&apic_ids, &virtio_mmio))?)
        } else {
            mptable::write(memory, &apic_ids)?;
            None
        };
        x86_64::write_page_tables(memory).map_err(BuildError::BootState)?;
        x86_64::write_reset_vector(memory).map_err(BuildError::BootState)?;
        let reserved = &ranges.reserved();
        let config = BootConfig { cmdline, initrd: self.initrd.as_ref(), rsdp, reserved };
        let replace = self.memory_backing.may_be_replaced();
        let huge = replace && self.memory_backing.allows_transparent_huge_pages();
        let pages = KernelPages { memory, huge, replace, has_ended };
        Ok(kernel.load_with(memory, &config, Some(&pages))?)
    }
}

fn acpi_config<'a>(apic_ids: &'a [u32], virtio_mmio: &'a [VirtioMmio]) -> AcpiConfig<'a> {
    AcpiConfig {
        apic_ids,
        sleep_control: power::ACPI_SLEEP_CONTROL_PORT,
        sleep_status: power::ACPI_SLEEP_STATUS_PORT,
        s5_sleep_type: power::ACPI_SLEEP_TYPE_S5,
        reset: power::ACPI_RESET_PORT,
        reset_value: power::ACPI_RESET_VALUE,
        uart: Some(Uart { port: SerialPort::COM1_PORT, gsi: SerialPort::COM1_IRQ }),
        power_button: Some(Lines::POWER_BUTTON_GSI),
        virtio_mmio,
    }
}
