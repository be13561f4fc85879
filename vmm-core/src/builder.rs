use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::thread;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use sparkler_devices::serial::SerialPort;
use sparkler_devices::virtio::VirtioDevice;
use sparkler_devices::virtio::block::{Block, Disk};
use sparkler_devices::virtio::net::{Net, NetDevice};
use sparkler_devices::{Bus, BusDevice, NoRtc, power};
use sparkler_loader::acpi::{self, AcpiConfig, Uart, VirtioMmio};
use sparkler_loader::{BootConfig, Cmdline, Entry, Initrd, Kernel, mptable};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::x86_64::{self, VcpuTemplate};
use crate::control::Control;
use crate::cpu::{CpuModel, CpuTemplate, CpuidEntry};
use crate::error::KvmError;
use crate::machine::{GuestSpace, Lines, Machine, SerialConsole, ports};
use crate::memory::{Ranges, RegionKind, SharedRegions};
use crate::own_devices::{AddressSpace, OwnDevices};
use crate::placement::Threads;
use crate::restart::ResetAction;
use crate::sys::kernel_pages::KernelPages;
use crate::sys::signal;
use crate::timeline::{Milestone, Recorder};
use crate::virtio_slots::{self, Slot};
use crate::{
    BuildError, Console, MemoryBacking, MemoryError, MemorySize, Placement, SharedRegion, Vm, host,
};

/// Bytes of kernel and initrd from which on they are loaded while another thread sets up KVM. Reading them
/// takes as long as the start of a thread, 0.1 ms and more.
const WORTH_A_THREAD: u64 = 256 << 10;

/// Says what a machine shall be; [`build`](Self::build) makes it.
///
/// Setters never fail and may be called in any order; the last call of each counts. Defaults: one vCPU,
/// 256 MiB, ACPI on, empty command line, no console. Only the kernel must be given.
#[derive(Debug)]
#[must_use = "a builder does nothing until build() is called"]
pub struct VmBuilder {
    blueprint: Blueprint,
    memory_regions: Vec<(u64, MemorySize)>,
    shared_regions: Vec<(u64, SharedRegion)>,
    placement: Placement,
    console: Option<Console>,
    devices: Devices,
    own_devices: OwnDevices,
    on_reset: ResetAction,
}

/// What a machine is made from, as often as it starts.
#[derive(Debug)]
pub(crate) struct Blueprint {
    vcpus: u32,
    memory: MemorySize,
    memory_backing: MemoryBacking,
    cpu: CpuModel,
    kernel: Option<Kernel>,
    initrd: Option<Initrd>,
    cmdline: String,
    acpi: bool,
}

impl VmBuilder {
    /// The most vCPUs that a machine can have. The host's KVM may set a lower limit.
    pub const MAX_VCPUS: u32 = 64;
    /// The most virtio devices that a machine can have.
    pub const MAX_DEVICES: usize = 256;

    pub(crate) fn new() -> Self {
        let blueprint = Blueprint {
            vcpus: 1,
            memory: MemorySize::mib(256),
            memory_backing: MemoryBacking::default(),
            cpu: CpuModel::default(),
            kernel: None,
            initrd: None,
            cmdline: String::new(),
            acpi: true,
        };
        Self {
            blueprint,
            memory_regions: Vec::new(),
            shared_regions: Vec::new(),
            placement: Placement::new(),
            console: None,
            devices: Devices::default(),
            own_devices: OwnDevices::default(),
            on_reset: ResetAction::End,
        }
    }

    /// How many vCPUs: 1 to [`MAX_VCPUS`](Self::MAX_VCPUS).
    pub fn vcpus(mut self, count: u32) -> Self {
        self.blueprint.vcpus = count;
        self
    }

    /// How much memory: [`MemorySize::MIN`] to [`MemorySize::MAX`], whole pages.
    pub fn memory(mut self, size: MemorySize) -> Self {
        self.blueprint.memory = size;
        self
    }

    /// What is behind the memory on the host: ordinary pages (the default), huge pages, a memfd or a
    /// file that others share.
    pub fn memory_backing(mut self, backing: MemoryBacking) -> Self {
        self.blueprint.memory_backing = backing;
        self
    }

    /// Adds memory at a guest-physical address of one's own choice, at 4 GiB or above and in whole
    /// pages: so memory can have holes. What lies between is absent.
    pub fn memory_region(mut self, address: u64, size: MemorySize) -> Self {
        self.memory_regions.push((address, size));
        self
    }

    /// Adds a file that the guest can read at a guest-physical `address`, at 4 GiB or above and a
    /// multiple of 4 KiB. See [`SharedRegion`] for what the guest finds there.
    pub fn shared_region(mut self, address: u64, region: SharedRegion) -> Self {
        self.shared_regions.push((address, region));
        self
    }

    /// On which of the host's CPUs the machine's threads run, and how.
    pub fn placement(mut self, placement: Placement) -> Self {
        self.placement = placement;
        self
    }

    /// Which processor the guest sees: the host's (the default), or a template that hides what differs
    /// between generations of processors.
    pub fn cpu_template(mut self, template: CpuTemplate) -> Self {
        self.blueprint.cpu.template = template;
        self
    }

    /// Has `edit` see and change what CPUID says, after all else: once for each vCPU, with its index. What
    /// KVM cannot do does not come true by being said here.
    pub fn cpuid(
        mut self,
        edit: impl Fn(u8, &mut Vec<CpuidEntry>) + Send + Sync + 'static,
    ) -> Self {
        self.blueprint.cpu.hook = Some(Box::new(edit));
        self
    }

    /// Whether the guest is denied the model-specific registers that tell of the host,
    /// [`DENIED_MSRS`](crate::cpu::DENIED_MSRS), as far as KVM can deny them (the default).
    pub fn msr_filter(mut self, on: bool) -> Self {
        self.blueprint.cpu.msr_filter = on;
        self
    }

    /// The kernel to boot.
    pub fn kernel(mut self, kernel: Kernel) -> Self {
        self.blueprint.kernel = Some(kernel);
        self
    }

    /// The initial RAM disk to hand to the kernel.
    pub fn initrd(mut self, initrd: Initrd) -> Self {
        self.blueprint.initrd = Some(initrd);
        self
    }

    /// The kernel's command line, see [`Cmdline`] for what it may hold.
    pub fn cmdline(mut self, line: impl Into<String>) -> Self {
        self.blueprint.cmdline = line.into();
        self
    }

    /// Where the serial port's output goes and its input comes from.
    pub fn console(mut self, console: Console) -> Self {
        self.console = Some(console);
        self
    }

    /// Adds a virtio device: one of [`virtio`](crate::virtio), or one of your own. The guest finds the
    /// devices in the order in which they were added; the first disk is `/dev/vda`.
    pub fn device(mut self, device: impl VirtioDevice) -> Self {
        self.devices.0.push(Box::new(device));
        self
    }

    /// Adds a disk: short for [`device`](Self::device) with a [`Block`].
    ///
    /// ```no_run
    /// use sparkler::{Kernel, Vm, virtio::block::Disk};
    ///
    /// let vm = Vm::builder()
    ///     .kernel(Kernel::file("/boot/vmlinuz")?)
    ///     .cmdline("console=ttyS0 root=/dev/vda")
    ///     .disk(Disk::open("root.ext4")?)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn disk(self, disk: Disk) -> Self {
        self.device(Block::new(disk))
    }

    /// Adds a network card: short for [`device`](Self::device) with a [`NetDevice`].
    ///
    /// ```no_run
    /// use sparkler::{Kernel, Vm, virtio::net::Net};
    ///
    /// let vm = Vm::builder()
    ///     .kernel(Kernel::file("/boot/vmlinuz")?)
    ///     .cmdline("console=ttyS0 ip=192.168.7.2::192.168.7.1:255.255.255.0::eth0:off")
    ///     .net(Net::tap("tap0")?)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn net(self, net: Net) -> Self {
        self.device(NetDevice::new(net))
    }

    /// Adds a device of your own at I/O ports. Several vCPUs may be in it at once; while one is, it runs no
    /// guest code, so the device must not wait for long.
    ///
    /// ```no_run
    /// use std::sync::Arc;
    /// use std::sync::atomic::{AtomicU8, Ordering};
    /// use sparkler::{BusDevice, Kernel, Vm};
    ///
    /// /// One byte that guest and host share.
    /// #[derive(Default)]
    /// struct Latch(AtomicU8);
    ///
    /// impl BusDevice for Latch {
    ///     fn read(&self, _offset: u64, data: &mut [u8]) {
    ///         data.fill(self.0.load(Ordering::SeqCst));
    ///     }
    ///     fn write(&self, _offset: u64, data: &[u8]) {
    ///         // One access of the guest, or a string instruction's many to the same port.
    ///         if let Some(&value) = data.last() {
    ///             self.0.store(value, Ordering::SeqCst);
    ///         }
    ///     }
    ///     fn reset(&self) {
    ///         self.0.store(0, Ordering::SeqCst);
    ///     }
    /// }
    ///
    /// let latch = Arc::new(Latch::default());
    /// let builder = Vm::builder()
    ///     .kernel(Kernel::file("/boot/vmlinuz")?)
    ///     .port_device(0x510..=0x510, latch.clone());
    /// # Ok::<(), sparkler::ImageError>(())
    /// ```
    ///
    /// [`build`](Self::build) refuses a range where something answers already: a device of the machine or of
    /// KVM (see [`OwnDeviceError`](crate::OwnDeviceError)).
    pub fn port_device(
        mut self,
        ports: RangeInclusive<u16>,
        device: impl BusDevice + 'static,
    ) -> Self {
        let ports = (*ports.start()).into()..=(*ports.end()).into();
        self.own_devices.add(AddressSpace::Ports, ports, Arc::new(device));
        self
    }

    /// Adds a device of your own at guest-physical addresses. It should lie between 3 and 4 GiB or above
    /// all memory. Otherwise as [`port_device`](Self::port_device).
    pub fn mmio_device(
        mut self,
        addresses: RangeInclusive<u64>,
        device: impl BusDevice + 'static,
    ) -> Self {
        self.own_devices.add(AddressSpace::Addresses, addresses, Arc::new(device));
        self
    }

    /// Whether the machine describes itself by ACPI tables (the default). Without, it has an MP table
    /// and a PIT instead, for kernels built without ACPI; it cannot be powered off then, only reset.
    pub fn acpi(mut self, on: bool) -> Self {
        self.blueprint.acpi = on;
        self
    }

    /// What happens when the guest, or the host, resets the machine: it ends (the default), or starts anew.
    pub fn on_reset(mut self, action: ResetAction) -> Self {
        self.on_reset = action;
        self
    }

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
        let shared = std::mem::take(&mut self.shared_regions);
        if self.blueprint.kernel.is_none() {
            return Err(BuildError::NoKernel);
        }
        let memory = self.blueprint.memory_backing.map(&ranges)?;
        let space = GuestSpace { memory, shared: SharedRegions::map(shared)?, ranges };
        let lines = Lines::new(self.blueprint.acpi).map_err(KvmError::EventFd)?;
        let slots = virtio_slots::place(devices, &space.memory, &lines.controllers)
            .map_err(BuildError::VirtioDevice)?;
        recorder.record(Milestone::MemoryMapped);
        let record = |milestone| recorder.record(milestone);
        let hardware = self.blueprint.boot(&space, &slots, &lines, record)?;
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
    /// run then.
    pub(crate) fn boot(
        &self,
        space: &GuestSpace,
        slots: &[Slot],
        lines: &Lines,
        record: impl Fn(Milestone) + Sync,
    ) -> Result<Hardware, BuildError> {
        let kernel = self.kernel.as_ref().ok_or(BuildError::NoKernel)?;
        let count = self.checked_vcpus()?;
        let cmdline = self.whole_cmdline(slots)?;
        let load = || {
            let entry = self.load(kernel, &cmdline, space, count, slots);
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

    fn checked_vcpus(&self) -> Result<u8, BuildError> {
        let illegal = BuildError::Vcpus { requested: self.vcpus, limit: VmBuilder::MAX_VCPUS };
        match u8::try_from(self.vcpus) {
            Ok(count) if (1..=VmBuilder::MAX_VCPUS).contains(&self.vcpus) => Ok(count),
            _ => Err(illegal),
        }
    }

    fn check_memory(&self) -> Result<(), BuildError> {
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
        vcpus: u8,
        slots: &[Slot],
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
        let huge = self.memory_backing.allows_transparent_huge_pages();
        let pages = KernelPages { memory, huge };
        let pages = self.memory_backing.may_be_replaced().then_some(&pages as _);
        Ok(kernel.load_with(memory, &config, pages)?)
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

/// The virtio devices that were asked for.
#[derive(Default)]
struct Devices(Vec<Box<dyn VirtioDevice>>);

impl fmt::Debug for Devices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|device| device.device_type())).finish()
    }
}

/// KVM's part of a machine.
pub(crate) struct Hardware {
    pub(crate) vm: Arc<VmFd>,
    pub(crate) vcpus: Vec<VcpuFd>,
    address_bits: u32,
}

impl Hardware {
    fn create(
        space: &GuestSpace,
        (count, cpu): (u8, &CpuModel),
        slots: &[Slot],
        lines: &Lines,
        acpi: bool,
    ) -> Result<Self, BuildError> {
        let kvm = host::open_fit()?;
        let limit = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
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
