use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use virtio_bindings::bindings::virtio_mmio::{VIRTIO_MMIO_INT_CONFIG, VIRTIO_MMIO_INT_VRING};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::TransportStats;
use super::pause::Pause;
use crate::Interrupt;

/// What the vCPU threads and the device's thread both touch. No lock: none of them waits for another.
pub(super) struct Shared {
    /// Wakes the device: the driver's notification, a [`Waker`](super::Waker), or the end.
    pub(super) notify: EventFd,
    /// Notifications of the first queues, if they have their own.
    pub(super) kicks: Vec<EventFd>,
    interrupt: Box<dyn Interrupt>,
    interrupt_status: AtomicU32,
    needs_reset: AtomicBool,
    config_generation: AtomicU32,
    pub(super) pause: Pause,
    interrupts: AtomicU64,
    resets: AtomicU64,
    failures: AtomicU64,
}

impl Shared {
    pub(super) fn new(interrupt: Box<dyn Interrupt>, kicks: u16) -> io::Result<Self> {
        let event = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self {
            notify: event()?,
            kicks: (0..kicks).map(|_| event()).collect::<io::Result<_>>()?,
            interrupt,
            interrupt_status: AtomicU32::new(0),
            needs_reset: AtomicBool::new(false),
            config_generation: AtomicU32::new(0),
            pause: Pause::default(),
            interrupts: AtomicU64::new(0),
            resets: AtomicU64::new(0),
            failures: AtomicU64::new(0),
        })
    }

    /// The driver notifies of a queue.
    pub(super) fn notify(&self, queue: u32) {
        match usize::try_from(queue).ok().and_then(|queue| self.kicks.get(queue)) {
            // As below.
            Some(kick) => drop(kick.write(1)),
            None => self.wake(),
        }
    }

    /// Wakes the device's thread. It can fail only if 2^64 notifications are pending: awake enough.
    pub(super) fn wake(&self) {
        let _ = self.notify.write(1);
    }

    /// Forgets pending notifications.
    pub(super) fn drain(&self) {
        let _ = self.notify.read(); // Fails if there are none.
    }

    /// The same, of all queues.
    fn drain_all(&self) {
        self.drain();
        self.kicks.iter().for_each(|kick| drop(kick.read()));
    }

    /// The device has used buffers (virtio 1.2, 4.2.2, `InterruptStatus` bit 0).
    pub(super) fn interrupt_used(&self) -> io::Result<()> {
        self.raise(VIRTIO_MMIO_INT_VRING)
    }

    /// The configuration has changed (bit 1).
    pub(super) fn interrupt_config(&self) -> io::Result<()> {
        self.config_generation.fetch_add(1, Ordering::SeqCst);
        self.raise(VIRTIO_MMIO_INT_CONFIG)
    }

    pub(super) fn interrupt_status(&self) -> u32 {
        self.interrupt_status.load(Ordering::SeqCst)
    }

    pub(super) fn acknowledge(&self, bits: u32) {
        self.interrupt_status.fetch_and(!bits, Ordering::SeqCst);
    }

    /// How often the configuration has changed, as far as the transport knows.
    pub(super) fn config_generation(&self) -> u32 {
        self.config_generation.load(Ordering::SeqCst)
    }

    /// The device met an error: `DEVICE_NEEDS_RESET`, and a configuration interrupt (2.1.2).
    pub(super) fn fail(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.needs_reset.store(true, Ordering::SeqCst);
        // If even the interrupt fails, the driver still sees the status.
        let _ = self.interrupt_config();
    }

    pub(super) fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::SeqCst)
    }

    /// To the state after a reset, once no thread of the device is left.
    pub(super) fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.drain_all();
        self.interrupt_status.store(0, Ordering::SeqCst);
        self.needs_reset.store(false, Ordering::SeqCst);
    }

    pub(super) fn stats(&self) -> TransportStats {
        TransportStats {
            interrupts: self.interrupts.load(Ordering::Relaxed),
            resets: self.resets.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }

    /// Bit first, then the edge: whoever sees the edge sees the bit. The edge comes each time, as other
    /// devices may share the line.
    fn raise(&self, bit: u32) -> io::Result<()> {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
        self.interrupt_status.fetch_or(bit, Ordering::SeqCst);
        self.interrupt.trigger()
    }
}

/// Whether a session is to end. Each has its own, and it is never taken back: what somebody keeps of an
/// earlier session does not come alive with the next.
#[derive(Debug, Clone, Default)]
pub(super) struct Stopping(Arc<AtomicBool>);

impl Stopping {
    pub(super) fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    pub(super) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("interrupt_status", &self.interrupt_status)
            .field("needs_reset", &self.needs_reset)
            .finish_non_exhaustive()
    }
}
