//! Virtio devices on their way into a machine: each gets a register window in the hole below 4 GiB, an
//! interrupt, and its place on the bus.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use sparkler_devices::virtio::{MmioTransport, VirtioDevice};
use sparkler_devices::{Bus, BusError};
use sparkler_loader::acpi::VirtioMmio;
use vm_memory::GuestMemoryMmap;

use crate::arch::x86_64::{Interrupts, Line};
use crate::control::Control;
use crate::error::KvmError;
use crate::interrupt_line::OwnLines;
use crate::placement::Threads;
use crate::{BuildError, DeviceStats, RunError, VmBuilder};

/// Where the first register window is; the others follow.
const FIRST_WINDOW: u64 = 0xd000_0000;
/// All windows that there can be.
pub(crate) const WINDOWS: RangeInclusive<u64> =
    FIRST_WINDOW..=FIRST_WINDOW + VmBuilder::MAX_DEVICES as u64 * MmioTransport::SIZE - 1;
/// Inputs of the IOAPIC that no legacy device takes. Devices beyond them share; the last is theirs in any case.
const FIRST_GSI: u32 = 5;
const LAST_GSI: u32 = 23;

/// A device on its transport, and where the guest finds it.
#[derive(Debug)]
pub(crate) struct Slot {
    transport: Arc<MmioTransport>,
    line: Line,
    place: VirtioMmio,
}

/// Gives each device its place, in order, and an interrupt that is none of the `own` ones.
pub(crate) fn place(
    devices: Vec<Box<dyn VirtioDevice>>,
    memory: &GuestMemoryMmap,
    lines: &Interrupts,
    own: &OwnLines,
) -> Result<Vec<Slot>, BuildError> {
    let addresses =
        (FIRST_WINDOW..).step_by(usize::try_from(MmioTransport::SIZE).unwrap_or(0x1000));
    let interrupts = (FIRST_GSI..=LAST_GSI).filter(|gsi| !own.contains(*gsi)).cycle();
    let places = addresses.zip(interrupts);
    let slots = devices.into_iter().enumerate().zip(places);
    let slots = slots.map(|((index, device), (address, gsi))| {
        let device_type = device.device_type();
        let error = |source| BuildError::VirtioDevice { index, device_type, source };
        let line = lines.line(gsi).map_err(error)?;
        let interrupt = Box::new(line.clone());
        let transport = MmioTransport::new(device, memory.clone(), interrupt).map_err(error)?;
        let transport = Arc::new(transport);
        let size = u32::try_from(MmioTransport::SIZE).unwrap_or(0x1000);
        Ok(Slot { transport, line, place: VirtioMmio { address, size, gsi } })
    });
    slots.collect()
}

impl Slot {
    /// A panic of the device's code ends the machine.
    pub(crate) fn report_panics(&self, control: &Arc<Control>) {
        let control = Arc::clone(control);
        self.transport.on_panic(move |thread, message| {
            let (thread, message) = (thread.to_owned(), message.to_owned());
            control.end(Err(RunError::Panicked { thread, message }));
        });
    }

    /// The device's thread runs where `threads` says.
    pub(crate) fn place_threads(&self, threads: &Arc<Threads>) {
        if let Some(prefix) = threads.name_prefix() {
            self.transport.set_log_prefix(prefix);
        }
        let threads = Arc::clone(threads);
        self.transport.on_thread_start(move |name| threads.enter_if_possible(name));
    }

    /// What it has done.
    pub(crate) fn stats(&self) -> DeviceStats {
        let mut counters = Vec::new();
        self.transport.counters().read(&mut |name, value| counters.push((name, value)));
        let (device_type, transport) = (self.transport.device_type(), self.transport.stats());
        DeviceStats { device_type, transport, counters }
    }

    /// What the ACPI tables say of it.
    pub(crate) fn place(&self) -> VirtioMmio {
        self.place
    }

    /// What the command line says of it where there is no ACPI.
    pub(crate) fn parameter(&self) -> String {
        let VirtioMmio { address, size, gsi } = self.place;
        format!("virtio_mmio.device={size}@{address:#x}:{gsi}")
    }

    /// Notifications go through KVM to the device's thread, without leaving the kernel.
    pub(crate) fn connect(&self, vm: &VmFd) -> Result<(), KvmError> {
        let notify = self.place.address.saturating_add(MmioTransport::QUEUE_NOTIFY);
        let notify = IoEventAddress::Mmio(notify);
        let kicks = self.transport.kick_fds();
        let connected = if kicks.is_empty() {
            // One descriptor for all queues: whatever value is written there.
            vm.register_ioevent(self.transport.notify_fd(), &notify, NoDatamatch)
        } else {
            // What is written for other queues, or not as four bytes, comes by the bus.
            let mut kicks = (0u32..).zip(kicks);
            kicks.try_for_each(|(queue, kick)| vm.register_ioevent(kick, &notify, queue))
        };
        connected.map_err(KvmError::ioctl("KVM_IOEVENTFD"))?;
        self.line.connect(vm)
    }
}

/// The transports of a machine.
#[derive(Debug)]
pub(crate) struct Transports(Vec<Slot>);

impl Transports {
    /// Puts the devices onto the MMIO bus.
    pub(crate) fn insert(slots: Vec<Slot>, mmio: &mut Bus) -> Result<Self, BusError> {
        for Slot { transport, place, .. } in &slots {
            mmio.insert(place.address, MmioTransport::SIZE, Arc::clone(transport) as _)?;
        }
        Ok(Self(slots))
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.0
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<MmioTransport>> {
        self.0.iter().map(|slot| &slot.transport)
    }

    /// Brings every device to a standstill. False: gave up, because of `has_ended`.
    pub(crate) fn pause(&self, has_ended: impl Fn() -> bool) -> bool {
        /// How often to look whether the machine has ended meanwhile, by which a device that is slow to
        /// stand still may be slow to be stopped, too.
        const LOOK: Duration = Duration::from_millis(20);
        self.iter().for_each(|transport| transport.begin_pause());
        self.iter().all(|transport| {
            while !transport.wait_paused(LOOK) {
                if has_ended() {
                    return false;
                }
            }
            true
        })
    }

    pub(crate) fn resume(&self) {
        self.iter().for_each(|transport| transport.resume());
    }

    /// Whether the calling thread is that of a device.
    pub(crate) fn is_own_thread(&self) -> bool {
        self.iter().any(|transport| transport.is_own_thread())
    }

    /// Ends every device and joins its thread. For when no vCPU runs any more.
    pub(crate) fn stop(&self) {
        // All at the same time: each may have requests in flight to wait for.
        self.iter().for_each(|transport| transport.begin_stop());
        self.iter().for_each(|transport| transport.stop());
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    use sparkler_devices::BusDevice;
    use sparkler_devices::virtio::rng::Rng;
    use sparkler_devices::virtio::{DeviceError, Session};
    use vm_memory::GuestAddress;

    use super::*;

    /// Two of them end only when both were told to.
    struct Twin {
        tell: Sender<()>,
        told: Receiver<()>,
        ended: Sender<bool>,
    }

    impl VirtioDevice for Twin {
        fn device_type(&self) -> u32 {
            42
        }

        fn queue_sizes(&self) -> &[u16] {
            &[]
        }

        fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
            while session.wait(&[], None)? {}
            let _ = self.tell.send(());
            let _ = self.ended.send(self.told.recv_timeout(Duration::from_secs(10)).is_ok());
            Ok(())
        }
    }

    /// A queue of a size that cannot be.
    struct Odd;

    impl VirtioDevice for Odd {
        fn device_type(&self) -> u32 {
            43
        }

        fn queue_sizes(&self) -> &[u16] {
            &[3]
        }

        fn run(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
            Ok(())
        }
    }

    #[test]
    fn a_device_that_cannot_be_is_named() {
        let good = || Box::new(Rng::new().unwrap());
        let devices: Vec<Box<dyn VirtioDevice>> = vec![good(), good(), Box::new(Odd), good()];
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let (lines, own) = (Interrupts::new(true), OwnLines::default());
        let error = place(devices, &memory, &lines, &own).unwrap_err();
        let expected = "cannot put the virtio device with index 2, of type 43, on its transport";
        assert_eq!(error.to_string(), expected);
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("has a size of 3"), "{cause}");
    }

    #[test]
    fn devices_are_told_to_stop_before_any_is_waited_for() {
        let ((tell_b, told_b), (tell_a, told_a)) = (channel(), channel());
        let (ended, both_ended) = channel();
        let a = Twin { tell: tell_b, told: told_a, ended: ended.clone() };
        let b = Twin { tell: tell_a, told: told_b, ended };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4096)]).unwrap();
        let devices: Vec<Box<dyn VirtioDevice>> = vec![Box::new(a), Box::new(b)];
        let (lines, own) = (Interrupts::new(true), OwnLines::default());
        let slots = place(devices, &memory, &lines, &own).unwrap();
        let transports = Transports::insert(slots, &mut Bus::new()).unwrap();
        // Status, features (only VERSION_1), status (virtio 1.2, 3.1.1 and 4.2.2).
        for (register, value) in
            [(0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11), (0x70, 15u32)]
        {
            for transport in transports.iter() {
                transport.write(register, &value.to_le_bytes());
            }
        }
        transports.stop();
        let ended = || both_ended.try_recv(); // Their threads have been joined.
        assert_eq!([ended(), ended()], [Ok(true), Ok(true)]);
    }
}
