mod build;

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use sparkler_devices::BusDevice;
use sparkler_devices::virtio::VirtioDevice;
use sparkler_devices::virtio::block::{Block, Disk};
use sparkler_devices::virtio::net::{Net, NetDevice};
use sparkler_loader::{Initrd, Kernel};

use crate::blueprint::Blueprint;
use crate::cpu::{CpuTemplate, CpuidEntry};
use crate::interrupt_line::OwnLines;
use crate::own_devices::{AddressSpace, OwnDevices};
use crate::restart::ResetAction;
use crate::{Console, InterruptLine, MemoryBacking, MemorySize, Placement, SharedRegion};

/// Says what a machine shall be; [`build`](Self::build) makes it.
///
/// Setters never fail and may be called in any order. Of those that set one thing the last call counts;
/// those that add something (devices, disks, cards, regions, interrupt lines) add one more each time.
/// Defaults: one vCPU, 256 MiB, ACPI on, empty command line, no console. Only the kernel must be given.
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
    own_lines: OwnLines,
    on_reset: ResetAction,
}

impl VmBuilder {
    /// The most vCPUs that a machine can have. The host's KVM may set a lower limit.
    pub const MAX_VCPUS: u32 = 64;
    /// The most virtio devices that a machine can have.
    pub const MAX_DEVICES: usize = 256;

    pub(crate) fn new() -> Self {
        Self {
            blueprint: Blueprint::default(),
            memory_regions: Vec::new(),
            shared_regions: Vec::new(),
            placement: Placement::new(),
            console: None,
            devices: Devices::default(),
            own_devices: OwnDevices::default(),
            own_lines: OwnLines::default(),
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
    ///
    /// ```no_run
    /// # use sparkler::{Kernel, Vm};
    /// const HYPERVISOR: u32 = 1 << 31;
    ///
    /// // The guest is not to know that it is one.
    /// let builder = Vm::builder().kernel(Kernel::file("/boot/vmlinuz")?).cpuid(|_vcpu, entries| {
    ///     for entry in entries.iter_mut().filter(|entry| entry.is(1, 0)) {
    ///         entry.ecx &= !HYPERVISOR;
    ///     }
    /// });
    /// # Ok::<(), sparkler::ImageError>(())
    /// ```
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

    /// The kernel's command line, see [`Cmdline`](crate::Cmdline) for what it may hold.
    pub fn cmdline(mut self, line: impl Into<String>) -> Self {
        self.blueprint.cmdline = line.into();
        self
    }

    /// Where the serial port's output goes and its input comes from.
    pub fn console(mut self, console: Console) -> Self {
        self.console = Some(console);
        self
    }

    /// Adds a virtio device: one of [`virtio`](crate::virtio), or one of your own; a `Box<dyn VirtioDevice>`
    /// is one too. The guest finds the
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

    /// Makes `line` the global system interrupt `gsi`, one of [`InterruptLine::GSIS`], for a device of your
    /// own. The guest is told of it no more than of the device itself: that is between you and its driver, which
    /// finds an edge-triggered, active-high input of the I/O APIC. In Linux,
    /// `acpi_register_gsi(NULL, gsi, ACPI_EDGE_SENSITIVE, ACPI_ACTIVE_HIGH)` makes an interrupt number of it.
    pub fn interrupt_line(mut self, gsi: u32, line: &InterruptLine) -> Self {
        self.own_lines.add(gsi, line.clone());
        self
    }

    /// Whether the machine describes itself by ACPI tables (the default). Without, it has an MP table
    /// and a PIT instead, for kernels built without ACPI; it cannot be powered off then, only reset.
    pub fn acpi(mut self, on: bool) -> Self {
        self.blueprint.acpi = on;
        self
    }

    /// What happens when the guest, or the host, resets the machine: it ends (the default), or starts anew.
    ///
    /// ```no_run
    /// # use sparkler::{Kernel, Vm};
    /// use sparkler::ResetAction;
    ///
    /// let vm = Vm::builder()
    ///     .kernel(Kernel::file("/boot/vmlinuz")?)
    ///     .on_reset(ResetAction::Restart)
    ///     .build()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn on_reset(mut self, action: ResetAction) -> Self {
        self.on_reset = action;
        self
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
