use std::io;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use super::chain::{Chain, Segment};
use super::shared::{Shared, Stopping};
use super::walk::{ChainError, Layout, Limits, Table};

/// A split virtqueue that is ready and was checked (virtio 1.2, 2.7).
///
/// It exists between `DRIVER_OK` and reset only, so an unready ring cannot be touched. An error on it
/// is the guest's fault and final: all later calls of [`pop`](Self::pop) fail too, until the reset.
/// From the moment that the session is to end, and while the machine is paused, it seems empty, so a loop
/// over it ends.
///
/// ```no_run
/// # use sparkler_devices::virtio::{Queue, QueueError};
/// # fn drain(queue: &mut Queue) -> Result<(), QueueError> {
/// loop {
///     queue.disable_notifications()?;
///     while let Some(chain) = queue.pop()? {
///         let written = 0; // ... the work ...
///         queue.push(chain, written)?;
///     }
///     queue.notify()?;
///     if !queue.enable_notifications()? {
///         return Ok(()); // The driver will notify when there is more.
///     }
/// }
/// # }
/// ```
#[derive(Debug)]
pub struct Queue {
    pub(super) index: u16,
    pub(super) ring: virtio_queue::Queue,
    pub(super) memory: Arc<GuestMemoryMmap>,
    pub(super) limits: Limits,
    pub(super) event_idx: bool,
    /// For each descriptor, whether it heads a chain that was popped and not pushed.
    pub(super) in_flight: Vec<bool>,
    pub(super) in_flight_count: u16,
    /// Allocations of earlier chains.
    pub(super) spare: Vec<Vec<Segment>>,
    /// How many chains were pushed since the last `notify`.
    pub(super) unannounced: u32,
    pub(super) broken: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) stopping: Stopping,
}

/// Allocations larger than this are not kept for the next chain.
const SPARE_SEGMENTS: usize = 128;

/// How a driver broke the rules of the ring, or a device those of [`Queue`].
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QueueError {
    /// The driver has not made the queue ready, or the device has no such queue.
    #[error("queue {queue} is not ready")]
    NotReady {
        /// Its index.
        queue: u16,
    },
    /// The queue's size is not a power of two from 1 to the most that the device offers.
    #[error("queue {queue} has a size of {size}: not a power of two up to {max}")]
    Size {
        /// Its index.
        queue: u16,
        /// What the driver wrote.
        size: u32,
        /// The most there may be.
        max: u16,
    },
    /// A part of the ring is not aligned, at zero, not in RAM, or wraps around.
    #[error("queue {queue} has its {part} at {address:#x}: misaligned or not in RAM")]
    Placement {
        /// Its index.
        queue: u16,
        /// Which part.
        part: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// The driver made more chains available than the ring can hold.
    #[error("queue {queue}: the available index jumped")]
    AvailableIndex {
        /// Index of the queue.
        queue: u16,
    },
    /// The driver made a chain available whose head is not in the table.
    #[error("queue {queue}: a chain begins at descriptor {head}, beyond the table")]
    Head {
        /// Index of the queue.
        queue: u16,
        /// Index of the descriptor.
        head: u16,
    },
    /// The driver made a chain available that the device still works on.
    #[error("queue {queue}: the chain at descriptor {head} is in flight already")]
    InFlight {
        /// Index of the queue.
        queue: u16,
        /// Index of the descriptor.
        head: u16,
    },
    /// A chain breaks the rules.
    #[error("queue {queue}: the chain at descriptor {head} is invalid")]
    Chain {
        /// Index of the queue.
        queue: u16,
        /// Index of the descriptor.
        head: u16,
        /// How.
        source: ChainError,
    },
    /// The queue met an error before.
    #[error("queue {queue} is out of use since an earlier error")]
    Broken {
        /// Its index.
        queue: u16,
    },
    /// The device pushed a chain that is not from this queue, or is from before a reset.
    #[error("queue {queue}: the chain at descriptor {head} is not in flight")]
    NotInFlight {
        /// Index of the queue.
        queue: u16,
        /// Index of the descriptor.
        head: u16,
    },
    /// The device claims more bytes written than the chain has room for.
    #[error("{written} bytes written to a chain with room for {room}")]
    Written {
        /// What it claims.
        written: usize,
        /// What there is.
        room: usize,
    },
    /// The ring cannot be read or written.
    #[error("queue {queue}: cannot access the ring")]
    Memory {
        /// Index of the queue.
        queue: u16,
        /// What guest memory said.
        source: GuestMemoryError,
    },
    /// The ring cannot be used.
    #[error("queue {queue}: cannot use the ring")]
    Ring {
        /// Index of the queue.
        queue: u16,
        /// Why.
        source: virtio_queue::Error,
    },
    /// The interrupt cannot be raised.
    #[error("cannot raise the interrupt")]
    Interrupt(#[source] io::Error),
}

impl Queue {
    /// Its index among the device's queues.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// How many chains it can hold.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// How many chains were popped and not pushed yet.
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.in_flight_count
    }

    /// Takes the next chain that the driver made available, if there is one.
    ///
    /// # Errors
    /// [`QueueError`] if the ring or the chain breaks the rules. The device should return it from
    /// [`VirtioDevice::run`](super::VirtioDevice::run).
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueError> {
        if self.broken {
            return Err(QueueError::Broken { queue: self.index });
        }
        if self.is_held() {
            return Ok(None);
        }
        self.pop_checked().inspect_err(|_| self.broken = true)
    }

    /// Gives `chain` back to the driver, with the first `written` of its writable bytes filled. The
    /// driver hears of it by [`notify`](Self::notify), which serves for many chains at once.
    ///
    /// # Errors
    /// [`QueueError::NotInFlight`] and [`QueueError::Written`] if the device is mistaken.
    pub fn push(&mut self, chain: Chain, written: usize) -> Result<(), QueueError> {
        self.push_all([(chain, written)])
    }

    /// Gives several chains back at once: the driver sees all of them or none.
    ///
    /// # Errors
    /// As [`push`](Self::push); no more of them are given back then.
    pub fn push_all(
        &mut self,
        chains: impl IntoIterator<Item = (Chain, usize)>,
    ) -> Result<(), QueueError> {
        let mut next = self.ring.next_used();
        for (chain, written) in chains {
            self.write_used(next, chain, written)?;
            next = next.wrapping_add(1);
            self.unannounced = self.unannounced.saturating_add(1);
        }
        self.ring.set_next_used(next);
        // Release: the entries before the index.
        let index = GuestAddress(self.ring.used_ring().saturating_add(2));
        let stored = self.memory.store(next.to_le(), index, Ordering::Release);
        stored.map_err(|source| QueueError::Memory { queue: self.index, source })
    }

    /// Raises the interrupt if chains were pushed and the driver wants to hear of it.
    ///
    /// # Errors
    /// [`QueueError::Interrupt`] if the interrupt's file descriptor fails.
    pub fn notify(&mut self) -> Result<(), QueueError> {
        let pushed = std::mem::take(&mut self.unannounced);
        if pushed > 0 && self.wants_interrupt(pushed)? {
            self.shared.interrupt_used().map_err(QueueError::Interrupt)?;
        }
        Ok(())
    }

    /// Asks the driver to notify when it makes more chains available. True if there are some already:
    /// then pop again instead of waiting.
    ///
    /// # Errors
    /// [`QueueError::Memory`] if the ring cannot be reached.
    pub fn enable_notifications(&mut self) -> Result<bool, QueueError> {
        let more = self.ring.enable_notification(&*self.memory);
        let more = more.map_err(|error| self.ring_error(error))?;
        Ok(more && !self.is_held())
    }

    /// Tells the driver that it need not notify. Only a hint: it may do so all the same.
    ///
    /// # Errors
    /// [`QueueError::Memory`] if the ring cannot be reached.
    pub fn disable_notifications(&mut self) -> Result<(), QueueError> {
        self.ring.disable_notification(&*self.memory).map_err(|error| self.ring_error(error))
    }

    /// The session is to end, or to stand still: nothing new begins.
    pub(super) fn is_held(&self) -> bool {
        self.stopping.get() || self.shared.pause.is_wanted()
    }

    fn pop_checked(&mut self) -> Result<Option<Chain>, QueueError> {
        let queue = self.index;
        let Some(head) = self.next_head()? else { return Ok(None) };
        match self.in_flight.get(usize::from(head)) {
            Some(false) => {}
            Some(true) => return Err(QueueError::InFlight { queue, head }),
            None => return Err(QueueError::Head { queue, head }),
        }
        let table =
            Table { address: GuestAddress(self.ring.desc_table()), count: self.ring.size() };
        let mut layout = Layout::reuse(self.spare.pop().unwrap_or_default());
        layout
            .walk(&self.memory, table, head, self.limits)
            .map_err(|source| QueueError::Chain { queue, head, source })?;
        if let Some(slot) = self.in_flight.get_mut(usize::from(head)) {
            *slot = true;
        }
        self.in_flight_count = self.in_flight_count.saturating_add(1);
        Ok(Some(Chain { queue, head, memory: self.memory.clone(), layout }))
    }

    /// The head of the next chain. `iter` alone tells an index that jumped from an empty ring.
    fn next_head(&mut self) -> Result<Option<u16>, QueueError> {
        match self.ring.iter(&*self.memory) {
            Ok(mut heads) => Ok(heads.next().map(|chain| chain.head_index())),
            Err(error) => Err(self.ring_error(error)),
        }
    }

    /// Writes the entry of the used ring that the driver will see as number `position`.
    fn write_used(
        &mut self,
        position: u16,
        chain: Chain,
        written: usize,
    ) -> Result<(), QueueError> {
        let Chain { queue, head, layout, .. } = &chain;
        let (queue, head, room) = (*queue, *head, layout.writable_len);
        let slot = self.in_flight.get_mut(usize::from(head)).filter(|_| queue == self.index);
        let Some(slot @ true) = slot else {
            return Err(QueueError::NotInFlight { queue: self.index, head });
        };
        let Some(len) = u32::try_from(written).ok().filter(|_| written <= room) else {
            return Err(QueueError::Written { written, room });
        };
        *slot = false;
        self.in_flight_count = self.in_flight_count.saturating_sub(1);
        self.recycle(chain.layout);
        let slot = u64::from(position.checked_rem(self.ring.size()).unwrap_or(0));
        let offset = slot.saturating_mul(8).saturating_add(4); // 2.7.8
        let entry = GuestAddress(self.ring.used_ring().saturating_add(offset));
        let written = self.memory.write_obj([u32::from(head).to_le(), len.to_le()], entry);
        written.map_err(|source| QueueError::Memory { queue: self.index, source })
    }

    /// Whether the driver wants an interrupt for the last `pushed` chains.
    fn wants_interrupt(&mut self, pushed: u32) -> Result<bool, QueueError> {
        fence(Ordering::SeqCst);
        if !self.event_idx {
            let flags = self.driver_field(0)?; // 2.7.6
            return Ok(u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0);
        }
        let behind = u64::from(self.ring.size()).saturating_mul(2).saturating_add(4);
        let event = self.driver_field(behind)?; // 2.7.7
        let passed = self.ring.next_used().wrapping_sub(event).wrapping_sub(1);
        Ok(u32::from(passed) < pushed)
    }

    /// A field of the available ring.
    fn driver_field(&self, offset: u64) -> Result<u16, QueueError> {
        let address = GuestAddress(self.ring.avail_ring().saturating_add(offset));
        let field = self.memory.load(address, Ordering::Relaxed).map(u16::from_le);
        field.map_err(|source| QueueError::Memory { queue: self.index, source })
    }

    /// Keeps the allocation of a chain for the next one, unless it is unusually large.
    fn recycle(&mut self, layout: Layout) {
        if layout.segments.capacity() <= SPARE_SEGMENTS && self.spare.len() < self.in_flight.len() {
            self.spare.push(layout.segments);
        }
    }

    fn ring_error(&self, error: virtio_queue::Error) -> QueueError {
        let queue = self.index;
        match error {
            virtio_queue::Error::InvalidAvailRingIndex => QueueError::AvailableIndex { queue },
            virtio_queue::Error::GuestMemory(source) => QueueError::Memory { queue, source },
            source => QueueError::Ring { queue, source },
        }
    }
}
