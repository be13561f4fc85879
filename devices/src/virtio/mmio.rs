use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;
use virtio_bindings::bindings::virtio_mmio as reg;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use super::features::Features;
use super::queue::QueueError;
use super::session::Session;
use super::setup::QueueSetup;
use super::shared::{Shared, Stopping};
use super::status::{self, DEVICE_NEEDS_RESET, DRIVER_OK, FAILED, FEATURES_OK, Step};
use super::worker::Worker;
use super::{ConfigSpace, Counters, TransportStats, VirtioDevice};
use crate::{BusDevice, Interrupt};

/// The largest queue that a device may offer. It bounds what a hostile driver can make the monitor
/// hold: so many chains of so many buffers, 16 MiB.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// "virt", little-endian.
const MAGIC: u32 = u32::from_le_bytes(*b"virt");
const VERSION: u32 = 2;
const VENDOR: u32 = u32::from_le_bytes(*b"SPRK");
/// No shared memory region: length and base read as all ones (virtio 1.2, 4.2.2).
const NO_SHARED_MEMORY: u32 = u32::MAX;

/// A virtio device on the MMIO bus (virtio 1.2, section 4.2, version 2 registers).
///
/// What a driver does outside the rules has these effects, here as in most implementations:
///
/// | the driver | the device |
/// |---|---|
/// | leaves out a step of its initialization, clears a status bit, writes an unknown one | ignores the write |
/// | accepts a feature that is not offered, or not `VERSION_1` | leaves `FEATURES_OK` clear |
/// | writes features before `DRIVER` or after `FEATURES_OK` | ignores the write |
/// | sets up a queue before `FEATURES_OK`, after `DRIVER_OK`, or while the queue is ready | ignores the write |
/// | says `DRIVER_OK` with a ready queue of a bad size or outside RAM | `DEVICE_NEEDS_RESET` |
/// | writes 0 to `QueueReady` of a live queue | stops the whole device, until reset |
/// | says `FAILED` | stops the device, until reset |
/// | breaks the rules of a ring | `DEVICE_NEEDS_RESET`, and stops |
/// | notifies before `DRIVER_OK` | looks at its queues at `DRIVER_OK` |
/// | accesses a register not with 4 aligned bytes | reads as zero, ignores the write (to `QueueNotify` it may notify: KVM's ioeventfd takes any width) |
/// | accesses a register that does not exist, or in the wrong direction | reads as zero, ignores the write |
///
/// A reset (0 to the status) works at any time; it waits until the device has let go of its requests,
/// for those that the host's storage has begun as long as that needs.
/// Queues, the device's thread and `DEVICE_NEEDS_RESET` end with it.
///
/// Notification, interrupt status, interrupt acknowledgement and configuration space take no lock.
pub struct MmioTransport {
    device_type: u32,
    config: Arc<dyn ConfigSpace>,
    counters: Arc<dyn Counters>,
    shared: Arc<Shared>,
    memory: Arc<GuestMemoryMmap>,
    state: Mutex<State>,
}

/// A device offers a queue of a size that is not a power of two up to [`MAX_QUEUE_SIZE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "queue {queue} of the device has a size of {size}: not a power of two up to {MAX_QUEUE_SIZE}"
)]
pub struct QueueSizeError {
    /// Index of the queue.
    pub queue: usize,
    /// Its size.
    pub size: u16,
}

impl MmioTransport {
    /// Size of the register window in bytes.
    pub const SIZE: u64 = 0x1000;
    /// Offset of `QueueNotify`, to which [`notify_fd`](Self::notify_fd) belongs.
    pub const QUEUE_NOTIFY: u64 = reg::VIRTIO_MMIO_QUEUE_NOTIFY as u64;

    /// Puts `device` on a transport. No thread is started before the driver says `DRIVER_OK`.
    ///
    /// # Errors
    /// If no eventfd can be made, or with a [`QueueSizeError`] or what [`VirtioDevice::check`] says inside.
    pub fn new(
        device: Box<dyn VirtioDevice>,
        memory: GuestMemoryMmap,
        interrupt: Box<dyn Interrupt>,
    ) -> io::Result<Self> {
        let queues = device.queue_sizes().iter().enumerate().map(|(queue, &size)| {
            let index = u16::try_from(queue).ok();
            let index = index.filter(|_| size.is_power_of_two() && size <= MAX_QUEUE_SIZE);
            let index = index.ok_or(QueueSizeError { queue, size })?;
            Ok(QueueSetup::new(index, size))
        });
        let queues = queues.collect::<Result<_, QueueSizeError>>();
        let queues = queues.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        device.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        Ok(Self {
            device_type: device.device_type(),
            config: device.config(),
            counters: device.counters(),
            shared: Arc::new(Shared::new(interrupt, device.kicks())?),
            memory: Arc::new(memory),
            state: Mutex::new(State {
                status: 0,
                features: Features::new(device.features()),
                device_features_select: 0,
                driver_features_select: 0,
                queue_select: 0,
                queues,
                worker: Worker::new(device),
                stopping: Stopping::default(),
                stopped: false,
            }),
        })
    }

    /// What a write to `QueueNotify` signals. The machine connects it there, whatever value is
    /// written, so that a notification does not leave the kernel; a write that arrives by
    /// [`BusDevice::write`] does the same. But see [`kick_fds`](Self::kick_fds).
    #[must_use]
    pub fn notify_fd(&self) -> &EventFd {
        &self.shared.notify
    }

    /// What a write of 0, 1, … to `QueueNotify` signals, if the device has these
    /// ([`VirtioDevice::kicks`]). The machine connects them, each with its value, in place of
    /// [`notify_fd`](Self::notify_fd); a write that arrives by [`BusDevice::write`] is for any queue.
    #[must_use]
    pub fn kick_fds(&self) -> &[EventFd] {
        &self.shared.kicks
    }

    /// The device's type number.
    #[must_use]
    pub fn device_type(&self) -> u32 {
        self.device_type
    }

    /// What the device counts.
    #[must_use]
    pub fn counters(&self) -> &dyn Counters {
        &*self.counters
    }

    /// What was counted here, without a lock.
    #[must_use]
    pub fn stats(&self) -> TransportStats {
        self.shared.stats()
    }

    /// Ends the device for good: its requests are completed or cancelled, its thread is gone. That takes as
    /// long as the device does, see [`VirtioDevice::run`]. Also done on drop. Later calls do nothing.
    pub fn stop(&self) {
        self.begin_stop();
        self.lock().worker.join();
    }

    /// Begins what [`stop`](Self::stop) waits for, so that several devices can end at the same time.
    pub fn begin_stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        self.begin_end(&state);
    }

    /// Begins to bring the device to a standstill: it starts no request any more and ends those that it
    /// has in progress. [`wait_paused`](Self::wait_paused) waits for it.
    pub fn begin_pause(&self) {
        self.shared.pause.set_wanted(true);
        self.shared.wake();
    }

    /// Waits until the device stands still, after [`begin_pause`](Self::begin_pause). False if that takes
    /// longer than `timeout`.
    pub fn wait_paused(&self, timeout: Duration) -> bool {
        self.shared.pause.wait(timeout)
    }

    /// Lets the device go on.
    pub fn resume(&self) {
        self.shared.pause.set_wanted(false);
        // A thread that saw the pause and not yet stood still may have taken a wake-up for it.
        self.shared.wake();
    }

    /// Whether the calling thread is the one of the live device.
    #[must_use]
    pub fn is_own_thread(&self) -> bool {
        self.shared.pause.is_own_thread()
    }

    /// Has `sink` called if the device's code panics, on the device's thread, with the name of the thread
    /// and what the panic said. The device then asks for a reset, with or without a sink.
    pub fn on_panic(&self, sink: impl Fn(&str, &str) + Send + Sync + 'static) {
        self.lock().worker.panic_sink = Some(Arc::new(sink));
    }

    /// Has `start` called in each thread of the device before it does anything, with the name of the
    /// thread: to say where it runs. It must not panic.
    pub fn on_thread_start(&self, start: impl Fn(&str) + Send + Sync + 'static) {
        self.lock().worker.thread_start = Some(Arc::new(start));
    }

    /// Has log lines about the device say whose it is: `PREFIX/virtio-2` (by device type) in place of
    /// `virtio-2`.
    pub fn set_log_prefix(&self, prefix: &str) {
        let log_name = format!("{prefix}/virtio-{}", self.device_type);
        self.lock().worker.log_name = log_name;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops the device's thread, if there is one, and waits for it.
    fn end_session(&self, state: &mut State) {
        self.begin_end(state);
        state.worker.join();
    }

    /// Tells the device's thread to end.
    fn begin_end(&self, state: &State) {
        state.stopping.set();
        self.shared.wake();
        self.shared.pause.wake();
    }

    fn read_register(&self, offset: u32) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            reg::VIRTIO_MMIO_VERSION => VERSION,
            reg::VIRTIO_MMIO_DEVICE_ID => self.device_type,
            reg::VIRTIO_MMIO_VENDOR_ID => VENDOR,
            reg::VIRTIO_MMIO_INTERRUPT_STATUS => self.shared.interrupt_status(),
            reg::VIRTIO_MMIO_CONFIG_GENERATION => {
                self.shared.config_generation().wrapping_add(self.config.generation())
            }
            reg::VIRTIO_MMIO_SHM_LEN_LOW
            | reg::VIRTIO_MMIO_SHM_LEN_HIGH
            | reg::VIRTIO_MMIO_SHM_BASE_LOW
            | reg::VIRTIO_MMIO_SHM_BASE_HIGH => NO_SHARED_MEMORY,
            _ => self.lock().read(offset, self.shared.needs_reset()),
        }
    }

    fn write_register(&self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_QUEUE_NOTIFY => self.shared.notify(value),
            reg::VIRTIO_MMIO_INTERRUPT_ACK => self.shared.acknowledge(value),
            reg::VIRTIO_MMIO_STATUS => self.write_status(value),
            reg::VIRTIO_MMIO_QUEUE_READY => self.write_queue_ready(value),
            _ => self.lock().write(offset, value),
        }
    }

    fn write_status(&self, value: u32) {
        let mut state = self.lock();
        match status::step(state.status, value) {
            Step::Accept => state.status = value & !DEVICE_NEEDS_RESET,
            Step::AgreeOnFeatures => {
                if state.features.negotiated().is_some() {
                    state.status |= FEATURES_OK;
                }
            }
            Step::Start => self.start(&mut state),
            Step::Fail => {
                state.status |= FAILED;
                self.end_session(&mut state);
            }
            Step::Reset => self.reset_locked(&mut state),
            Step::Ignore => {}
        }
    }

    fn reset_locked(&self, state: &mut State) {
        self.end_session(state);
        self.shared.reset();
        state.reset();
    }

    /// `DRIVER_OK`: checks the queues that are ready and starts the device on them.
    fn start(&self, state: &mut State) {
        state.status |= DRIVER_OK;
        if state.stopped {
            return;
        }
        let stopping = Stopping::default();
        state.stopping = stopping.clone();
        let features = state.features.negotiated().unwrap_or(0);
        let ready = state.queues.iter().filter(|queue| queue.ready);
        let (memory, shared) = (&self.memory, &self.shared);
        let queues = ready.map(|queue| queue.activate(memory, features, shared, &stopping));
        let started = match queues.collect::<Result<Vec<_>, QueueError>>() {
            Ok(queues) => {
                let session =
                    Session::new(features, queues, memory.clone(), shared.clone(), stopping);
                state.worker.start(session, &self.shared).map_err(Into::into)
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = started {
            self.shared.fail();
            state.worker.log(error);
        }
    }

    fn write_queue_ready(&self, value: u32) {
        let mut state = self.lock();
        let open = status::queues_open(state.status);
        let live = state.status & DRIVER_OK != 0;
        let Some(queue) = state.queue_mut() else { return };
        match value {
            1 if open => queue.ready = true,
            0 if open => queue.ready = false,
            // The driver reads the register back to know that the device has let go of the ring (4.2.2.2).
            // All drivers do so on their way out, so the other queues stop with it.
            0 if live && queue.ready => {
                queue.ready = false;
                self.end_session(&mut state);
            }
            _ => {}
        }
    }
}

impl BusDevice for MmioTransport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.config.read(offset, data);
        } else if let (Ok(data), Some(offset)) = (<&mut [u8; 4]>::try_from(data), register(offset))
        {
            *data = self.read_register(offset).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let Some(offset) = offset.checked_sub(reg::VIRTIO_MMIO_CONFIG.into()) {
            self.config.write(offset, data);
        } else if let (Ok(data), Some(offset)) = (<[u8; 4]>::try_from(data), register(offset)) {
            self.write_register(offset, u32::from_le_bytes(data));
        }
    }

    /// As if the driver had reset the device.
    fn reset(&self) {
        self.reset_locked(&mut self.lock());
    }
}

impl Drop for MmioTransport {
    fn drop(&mut self) {
        self.stop();
    }
}

impl fmt::Debug for MmioTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MmioTransport")
            .field("device_type", &self.device_type)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// The register at `offset`, if that is where one can begin.
fn register(offset: u64) -> Option<u32> {
    u32::try_from(offset).ok().filter(|offset| offset % 4 == 0)
}

/// What the registers hold.
struct State {
    /// As the driver sees it, but for `DEVICE_NEEDS_RESET`.
    status: u32,
    features: Features,
    device_features_select: u32,
    driver_features_select: u32,
    queue_select: u32,
    queues: Vec<QueueSetup>,
    worker: Worker,
    /// Of the session, or of the last one.
    stopping: Stopping,
    /// By the machine, for good.
    stopped: bool,
}

impl State {
    fn reset(&mut self) {
        self.status = 0;
        self.features.reset();
        self.device_features_select = 0;
        self.driver_features_select = 0;
        self.queue_select = 0;
        self.queues.iter_mut().for_each(QueueSetup::reset);
    }

    /// The queue that `QueueSel` selects.
    fn queue(&self) -> Option<&QueueSetup> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    fn queue_mut(&mut self) -> Option<&mut QueueSetup> {
        self.queues.get_mut(usize::try_from(self.queue_select).ok()?)
    }

    fn read(&self, offset: u32, needs_reset: bool) -> u32 {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES => self.features.offered(self.device_features_select),
            reg::VIRTIO_MMIO_QUEUE_NUM_MAX => self.queue().map_or(0, |queue| queue.max.into()),
            reg::VIRTIO_MMIO_QUEUE_READY => self.queue().is_some_and(|queue| queue.ready).into(),
            reg::VIRTIO_MMIO_STATUS if needs_reset => self.status | DEVICE_NEEDS_RESET,
            reg::VIRTIO_MMIO_STATUS => self.status,
            _ => 0,
        }
    }

    fn write(&mut self, offset: u32, value: u32) {
        match offset {
            reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL => self.device_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL => self.driver_features_select = value,
            reg::VIRTIO_MMIO_DRIVER_FEATURES if status::features_open(self.status) => {
                self.features.accept(self.driver_features_select, value);
            }
            reg::VIRTIO_MMIO_QUEUE_SEL => self.queue_select = value,
            _ if status::queues_open(self.status) => {
                if let Some(queue) = self.queue_mut().filter(|queue| !queue.ready) {
                    queue.write(offset, value);
                }
            }
            _ => {}
        }
    }
}
