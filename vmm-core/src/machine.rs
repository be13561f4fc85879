use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kvm_ioctls::{VcpuFd, VmFd};
use sparkler_devices::boot_mark::{BOOT_MARK_PORT, BootMark};
use sparkler_devices::io_apic::IoApic;
use sparkler_devices::power::{self, AcpiRegisters, ExitPort, I8042, PowerEvent};
use sparkler_devices::serial::{OutputBuffer, SerialPort};
use sparkler_devices::{Bus, BusDevice, BusError, Interrupt};
use sparkler_loader::layout;
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use crate::arch::x86_64::{Interrupts, Line};
use crate::blueprint::Blueprint;
use crate::console::InputSpace;
use crate::control::Control;
use crate::hardware::Hardware;
use crate::interrupt_line::OwnLines;
use crate::memory::{self, Ranges, SharedRegions};
use crate::restart::ResetAction;
use crate::stats::{ExitCounters, Stats};
use crate::sys::wake::Wake;
use crate::timeline::Milestone;
use crate::virtio_slots::{Slot, Transports};
use crate::{Console, ControlError, Outcome};

/// A machine's vCPUs, and what they run in: memory and devices, which are shared without a lock.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) ports: Bus,
    pub(crate) mmio: Bus,
    pub(crate) serial: SerialConsole,
    pub(crate) virtio: Transports,
    /// Each is locked by its thread, but for when the thread is parked.
    pub(crate) vcpus: Vec<Mutex<Option<VcpuFd>>>,
    pub(crate) exits: Vec<ExitCounters>,
    // KVM maps guest memory by its address in this process. The VM goes first, then the memory.
    pub(crate) vm: Mutex<Option<Arc<VmFd>>>,
    pub(crate) space: GuestSpace,
    pub(crate) lines: Lines,
    /// If it may be started anew.
    pub(crate) blueprint: Option<Blueprint>,
}

/// The interrupt controllers, and what is connected to them for good.
#[derive(Debug)]
pub(crate) struct Lines {
    pub(crate) controllers: Interrupts,
    pub(crate) serial: Line,
    /// If there is ACPI to tell the guest what it means.
    pub(crate) power_button: Option<Line>,
    /// Of devices of the caller's own.
    pub(crate) own: Vec<Arc<Line>>,
}

impl Lines {
    /// Input of the IOAPIC for the power button: that of COM2, which is not there.
    pub(crate) const POWER_BUTTON_GSI: u32 = 3;

    pub(crate) fn new(acpi: bool, own: &OwnLines) -> std::io::Result<Self> {
        let controllers = Interrupts::new(acpi);
        let serial = controllers.line(SerialPort::COM1_IRQ)?;
        let power_button = acpi.then(|| controllers.line(Self::POWER_BUTTON_GSI)).transpose()?;
        let own = own.inputs(&controllers)?;
        Ok(Self { controllers, serial, power_button, own })
    }
}

/// What a guest finds in its physical address space beside devices.
#[derive(Debug)]
pub(crate) struct GuestSpace {
    pub(crate) memory: GuestMemoryMmap,
    pub(crate) shared: SharedRegions,
    /// Where both lie.
    pub(crate) ranges: Ranges,
}

impl Machine {
    pub(crate) fn new(
        (ports, mut mmio): (Bus, Bus),
        serial: SerialConsole,
        slots: Vec<Slot>,
        hardware: Hardware,
        space: GuestSpace,
        lines: Lines,
        blueprint: Option<Blueprint>,
    ) -> Result<Self, BusError> {
        if let Some(device) = lines.controllers.device() {
            mmio.insert(layout::IOAPIC.0, IoApic::LENGTH, device)?;
        }
        for window in space.shared.iter() {
            let Range { start, end } = window.range;
            let length = end.saturating_sub(start);
            mmio.insert(start, length, window.device())?;
        }
        let virtio = Transports::insert(slots, &mut mmio)?;
        let vcpus: Vec<_> = hardware.vcpus.into_iter().map(|vcpu| Mutex::new(Some(vcpu))).collect();
        let exits = (0..vcpus.len()).map(|_| ExitCounters::default()).collect();
        let vm = Mutex::new(Some(hardware.vm));
        Ok(Self { ports, mmio, serial, virtio, vcpus, exits, vm, space, lines, blueprint })
    }

    /// What it counts, but for the console.
    pub(crate) fn stats(&self) -> Stats {
        let memory = &self.space.memory;
        Stats {
            vcpus: self.exits.iter().map(ExitCounters::snapshot).collect(),
            devices: self.virtio.slots().iter().map(Slot::stats).collect(),
            shared_region_writes_dropped: self.space.shared.dropped_writes(),
            memory_size: memory.iter().map(|region| region.len()).fold(0, u64::saturating_add),
            memory_resident: memory::resident(memory),
            ..Stats::default()
        }
    }

    /// How many vCPUs it has.
    pub(crate) fn vcpu_count(&self) -> u8 {
        u8::try_from(self.vcpus.len()).unwrap_or(u8::MAX)
    }

    /// Waits for a vCPU, and keeps it from others. It is not there after a restart that failed.
    pub(crate) fn vcpu(&self, index: u8) -> Option<MutexGuard<'_, Option<VcpuFd>>> {
        self.vcpus.get(usize::from(index)).map(lock)
    }

    /// Brings all to a standstill but the vCPUs, which are parked already. Gives up if `has_ended`.
    pub(crate) fn pause(&self, has_ended: impl Fn() -> bool) -> Result<(), ControlError> {
        for vcpu in &self.vcpus {
            // So that the guest does not take the time for a lock-up. It fails if the guest has not set
            // up KVM's clock.
            let _ = lock(vcpu).as_ref().map(VcpuFd::kvmclock_ctrl);
        }
        self.serial.input_space.set_closed(true);
        let paused = self.virtio.pause(&has_ended) && self.serial.wait_delivered(&has_ended);
        if paused { Ok(()) } else { Err(ControlError::Ended) }
    }

    /// Undoes [`pause`](Self::pause).
    pub(crate) fn resume(&self) {
        self.virtio.resume();
        self.serial.input_space.set_closed(false);
    }
}

impl GuestSpace {
    /// The file behind guest memory, if there is one.
    pub(crate) fn memory_fd(&self) -> Option<BorrowedFd<'_>> {
        let file = self.memory.iter().next()?.file_offset()?;
        Some(file.file().as_fd())
    }
}

/// COM1, with what lies between it and the console's threads.
#[derive(Debug)]
pub(crate) struct SerialConsole {
    pub(crate) port: Arc<SerialPort>,
    pub(crate) output: Arc<OutputBuffer>,
    pub(crate) wake_output: Wake,
    pub(crate) input_space: Arc<InputSpace>,
}

impl SerialConsole {
    /// A UART that raises `interrupt`. Without a console (`connected`), what it prints goes nowhere.
    pub(crate) fn new(
        interrupt: impl Interrupt + 'static,
        connected: bool,
        capacity: usize,
    ) -> std::io::Result<Self> {
        let wake_output = Wake::new()?;
        let wake = wake_output.clone();
        let output = Arc::new(OutputBuffer::new(capacity, move || wake.wake()));
        let input_space = Arc::new(InputSpace::new()?);
        let space = Arc::clone(&input_space);
        let sink = connected.then(|| Arc::clone(&output));
        let port = Arc::new(SerialPort::new(interrupt, sink, move || space.available()));
        Ok(Self { port, output, wake_output, input_space })
    }

    /// Waits until what the guest has printed is written, as long as the writer makes progress. False: gave
    /// up, because of `has_ended`.
    fn wait_delivered(&self, has_ended: impl Fn() -> bool) -> bool {
        /// How often to look whether the machine has ended meanwhile.
        const LOOK: Duration = Duration::from_millis(20);
        let (mut waiting, mut silence) = (self.output.len(), Duration::ZERO);
        while silence < Console::DRAIN_TIMEOUT && !self.output.wait_delivered(LOOK) {
            if has_ended() {
                return false;
            }
            let now = self.output.len();
            silence = if now == waiting { silence.saturating_add(LOOK) } else { Duration::ZERO };
            waiting = now;
        }
        true
    }
}

/// The devices at fixed ports.
pub(crate) fn ports(
    serial: &Arc<SerialPort>,
    control: &Arc<Control>,
    on_reset: ResetAction,
) -> Result<Bus, BusError> {
    let sink = || {
        let control = Arc::clone(control);
        move |event| match outcome_of(event) {
            Some(Outcome::Reset) if on_reset == ResetAction::Restart => control.request_reset(),
            Some(outcome) => drop(control.end(Ok(outcome))),
            None => {}
        }
    };
    let marks = Arc::clone(control);
    let boot_mark = BootMark::new(move |number| marks.recorder().record(Milestone::Mark(number)));

    let mut ports = Bus::new();
    let mut insert = |port: u16, length: u16, device: Arc<dyn BusDevice>| {
        ports.insert(u64::from(port), u64::from(length), device)
    };
    insert(SerialPort::COM1_PORT, SerialPort::LENGTH, Arc::clone(serial) as _)?;
    insert(power::I8042_PORT, power::I8042_LENGTH, Arc::new(I8042::new(sink())))?;
    insert(power::EXIT_PORT, 1, Arc::new(ExitPort::new(sink())))?;
    insert(BOOT_MARK_PORT, 1, Arc::new(boot_mark))?;
    let acpi = AcpiRegisters::new(sink());
    insert(power::ACPI_SLEEP_CONTROL_PORT, power::ACPI_LENGTH, Arc::new(acpi))?;
    Ok(ports)
}

fn outcome_of(event: PowerEvent) -> Option<Outcome> {
    match event {
        PowerEvent::Exit(code) => Some(Outcome::Exited(code)),
        PowerEvent::Reset => Some(Outcome::Reset),
        PowerEvent::PowerOff => Some(Outcome::PowerOff),
        _ => None,
    }
}

/// What the locks guard is valid after every step, so a panic elsewhere cannot spoil it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
