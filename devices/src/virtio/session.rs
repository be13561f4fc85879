use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};
use std::time::Duration;

use vm_memory::GuestMemoryMmap;

use super::queue::{Queue, QueueError};
use super::shared::{Shared, Stopping};
pub use crate::sys::Interest;
use crate::sys::{self, Poller};

/// One period of a device's life, from `DRIVER_OK` to reset: what the driver negotiated, its queues,
/// guest memory, the interrupt, and a way to wait.
#[derive(Debug)]
pub struct Session {
    features: u64,
    queues: Vec<Queue>,
    memory: Arc<GuestMemoryMmap>,
    shared: Arc<Shared>,
    stopping: Stopping,
    poller: Poller,
    busy: bool,
}

impl Session {
    pub(super) fn new(
        features: u64,
        queues: Vec<Queue>,
        memory: Arc<GuestMemoryMmap>,
        shared: Arc<Shared>,
        stopping: Stopping,
    ) -> Self {
        let poller = Poller::default();
        Self { features, queues, memory, shared, stopping, poller, busy: false }
    }

    /// The features in force: offered by the device (or the transport) and accepted by the driver.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Guest memory. Buffers of requests are better reached through their [`Chain`](super::Chain).
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemoryMmap> {
        &self.memory
    }

    /// The queues that the driver made ready, in the order of their indices. It need not be all.
    pub fn queues(&mut self) -> &mut [Queue] {
        &mut self.queues
    }

    /// The queue of an index.
    ///
    /// # Errors
    /// [`QueueError::NotReady`] if the driver left it out.
    pub fn queue(&mut self, index: u16) -> Result<&mut Queue, QueueError> {
        let queue = self.queues.iter_mut().find(|queue| queue.index() == index);
        queue.ok_or(QueueError::NotReady { queue: index })
    }

    /// Takes the queues out, so that they can be used while the session is borrowed, or on threads of
    /// their own. They end with the session all the same: [`pop`](Queue::pop) finds nothing any more.
    /// Such a thread must end before [`run`](super::VirtioDevice::run) does, as what it pushes would
    /// still reach the driver's memory.
    #[must_use]
    pub fn take_queues(&mut self) -> Vec<Queue> {
        std::mem::take(&mut self.queues)
    }

    /// Waits until the driver notifies (any queue), a [`Waker`] wakes, one of `fds` is readable or in
    /// error, or `timeout` has passed; it may also return for no reason. `false`: return from
    /// [`run`](super::VirtioDevice::run) now, it is a reset or the end of the machine.
    ///
    /// The first call of a session returns at once if the driver notified before `DRIVER_OK`; buffers
    /// that it offered without notifying are found by looking at the queues before waiting.
    ///
    /// While the machine is paused it does not return, unless the device is [busy](Self::set_busy).
    ///
    /// # Errors
    /// That of ppoll(2), which fails when the kernel lacks memory.
    pub fn wait(&mut self, fds: &[BorrowedFd<'_>], timeout: Option<Duration>) -> io::Result<bool> {
        self.wait_for(fds.iter().copied().map(Interest::read), timeout)
    }

    /// The same as [`wait`](Self::wait), with file descriptors that may also be waited for until they
    /// are writable. [`is_ready`](Self::is_ready) says which of them are.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_for<'fd>(
        &'fd mut self,
        fds: impl IntoIterator<Item = Interest<'fd>>,
        timeout: Option<Duration>,
    ) -> io::Result<bool> {
        self.poller.clear();
        if self.is_pausing() && !self.busy {
            // As after any wait, the device looks at all it has then.
            self.shared.pause.stand_still(&self.stopping);
        } else if !self.is_stopping() {
            let notify = Interest::read(sys::borrow(&self.shared.notify));
            self.poller.wait(std::iter::once(notify).chain(fds), timeout)?;
            if self.poller.is_ready(0) {
                self.shared.drain();
            }
        }
        Ok(!self.is_stopping())
    }

    /// Whether the last [`wait_for`](Self::wait_for) ended with file descriptor number `index` of those
    /// it was given ready, in error, or hung up.
    #[must_use]
    pub fn is_ready(&self, index: usize) -> bool {
        self.poller.is_ready(index.saturating_add(1))
    }

    /// What is signalled when the driver notifies of a queue, if that has a notification of its own
    /// ([`VirtioDevice::kicks`](super::VirtioDevice::kicks)); an eventfd. Notifications from before
    /// `DRIVER_OK` are in it.
    #[must_use]
    pub fn kick(&self, queue: u16) -> Option<BorrowedFd<'_>> {
        self.shared.kicks.get(usize::from(queue)).map(sys::borrow)
    }

    /// Tells the driver that buffers of a queue were used, by somebody else than a [`Queue`].
    ///
    /// # Errors
    /// That of the interrupt's file descriptor.
    pub fn used(&self) -> io::Result<()> {
        self.shared.interrupt_used()
    }

    /// Tells the driver that the configuration space has changed (virtio 1.2, 2.5.3 and 4.2.2).
    ///
    /// # Errors
    /// That of the interrupt's file descriptor.
    pub fn config_changed(&self) -> io::Result<()> {
        self.shared.interrupt_config()
    }

    /// Wakes [`wait`](Self::wait) from any thread, in this session and later ones.
    #[must_use]
    pub fn waker(&self) -> Waker {
        Waker(Arc::downgrade(&self.shared))
    }

    /// Says whether the device has anything in progress that could still touch guest memory while it is in
    /// [`wait`](Self::wait): on another thread, or with the host's kernel. As long as it has, a pause of
    /// the machine waits for it, and `wait` returns as usual, so that it can be brought to an end. A
    /// device that does its work on this thread never needs it.
    pub fn set_busy(&mut self, busy: bool) {
        self.busy = busy;
    }

    /// Whether the machine is being paused. Cheap, for long work that can be interrupted:
    /// [`wait`](Self::wait) wants to be called. Queues seem empty until the machine goes on.
    #[must_use]
    pub fn is_pausing(&self) -> bool {
        self.shared.pause.is_wanted()
    }

    /// Whether to return from [`run`](super::VirtioDevice::run) now, once nothing is in progress any more.
    /// Cheap, for long work.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stopping.get()
    }
}

/// Wakes the thread of a device, see [`Session::waker`]. Between sessions, a wake is kept for the next,
/// unless the driver resets the device. It keeps nothing of the device open.
#[derive(Debug, Clone)]
pub struct Waker(Weak<Shared>);

impl Waker {
    /// Makes [`Session::wait`] return. Without effect once the device is gone.
    pub fn wake(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.wake();
        }
    }
}
