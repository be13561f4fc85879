use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// A device that answers reads and writes within a range of ports or MMIO addresses.
///
/// Calls come from the vCPU threads, several at once: a device that needs a lock brings its own.
/// `offset` counts from the start of the range. `data` is as long as the guest made the access; one
/// string instruction (`rep outsb`) arrives as one longer slice, all of it meant for the same port. A
/// device must take any length, also one that reaches beyond its range.
pub trait BusDevice: Send + Sync {
    /// The guest reads: fill all of `data`.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// The guest writes `data`.
    fn write(&self, offset: u64, data: &[u8]);
    /// The machine is reset, to start anew: back to the state at power-on. No vCPU runs meanwhile.
    fn reset(&self) {}
}

/// So that others can keep a hold of a device, too.
impl<T: BusDevice + ?Sized> BusDevice for Arc<T> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        (**self).read(offset, data);
    }
    fn write(&self, offset: u64, data: &[u8]) {
        (**self).write(offset, data);
    }
    fn reset(&self) {
        (**self).reset();
    }
}

/// Why a device cannot sit on a bus at the range asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum BusError {
    /// The range is empty or wraps beyond the end of the address space.
    #[error("a device range of {length} at {start:#x} is empty or wraps around")]
    BadRange {
        /// First address of the range.
        start: u64,
        /// Number of addresses in it.
        length: u64,
    },
    /// Another device already answers to a part of the range.
    #[error("the device range at {start:#x} overlaps the one at {other:#x}")]
    Overlap {
        /// First address of the range that was refused.
        start: u64,
        /// First address of the range that is in its way.
        other: u64,
    },
}

/// An address space (ports or MMIO) and the devices in it.
///
/// Built once, then shared between the vCPU threads without a lock.
///
/// ```
/// use std::sync::Arc;
/// use sparkler_devices::{Bus, BusDevice};
///
/// struct Seven;
/// impl BusDevice for Seven {
///     fn read(&self, _offset: u64, data: &mut [u8]) {
///         data.fill(7);
///     }
///     fn write(&self, _offset: u64, _data: &[u8]) {}
/// }
///
/// let mut bus = Bus::new();
/// bus.insert(0x10, 4, Arc::new(Seven))?;
/// let mut data = [0; 2];
/// bus.read(0x12, &mut data);
/// assert_eq!(data, [7, 7]);
/// bus.read(0x14, &mut data); // nothing there
/// assert_eq!(data, [0xff, 0xff]);
/// # Ok::<(), sparkler_devices::BusError>(())
/// ```
#[derive(Default)]
pub struct Bus {
    /// Sorted by `start`; ranges do not overlap.
    slots: Vec<Slot>,
}

struct Slot {
    start: u64,
    last: u64,
    device: Arc<dyn BusDevice>,
}

impl Bus {
    /// A bus with nothing on it.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts `device` at the `length` addresses from `start`.
    ///
    /// # Errors
    /// [`BusError`] if the range is empty, wraps, or overlaps that of another device.
    pub fn insert(
        &mut self,
        start: u64,
        length: u64,
        device: Arc<dyn BusDevice>,
    ) -> Result<(), BusError> {
        let last = length
            .checked_sub(1)
            .and_then(|reach| start.checked_add(reach))
            .ok_or(BusError::BadRange { start, length })?;
        if let Some(other) = self.slots.iter().find(|slot| slot.start <= last && start <= slot.last)
        {
            return Err(BusError::Overlap { start, other: other.start });
        }
        let position = self.slots.partition_point(|slot| slot.start < start);
        self.slots.insert(position, Slot { start, last, device });
        Ok(())
    }

    /// The guest reads at `address`. Where there is no device, all bits read as ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// The guest writes at `address`. Where there is no device, the write is lost, as on hardware.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address) {
            device.write(offset, data);
        }
    }

    /// Resets every device.
    pub fn reset(&self) {
        self.slots.iter().for_each(|slot| slot.device.reset());
    }

    fn find(&self, address: u64) -> Option<(&dyn BusDevice, u64)> {
        let before = self.slots.partition_point(|slot| slot.start <= address).checked_sub(1)?;
        let slot = self.slots.get(before)?;
        let offset = address.checked_sub(slot.start)?;
        (address <= slot.last).then_some((slot.device.as_ref(), offset))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ranges = self.slots.iter().map(|slot| format!("{:#x}..={:#x}", slot.start, slot.last));
        f.debug_list().entries(ranges).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset).unwrap());
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn finds_devices_at_the_edges_of_their_ranges_and_nothing_between() {
        let mut bus = Bus::new();
        bus.insert(0x20, 0x10, Arc::new(Recorder::default())).unwrap();
        bus.insert(0x10, 2, Arc::new(Recorder::default())).unwrap();
        bus.insert(u64::MAX, 1, Arc::new(Recorder::default())).unwrap();
        let read = |address| {
            let mut data = [0x55; 1];
            bus.read(address, &mut data);
            data[0]
        };
        assert_eq!([0x0f, 0x10, 0x11, 0x12, 0x1f].map(read), [0xff, 0, 1, 0xff, 0xff]);
        assert_eq!([0x20, 0x2f, 0x30, u64::MAX - 1, u64::MAX].map(read), [0, 15, 0xff, 0xff, 0]);
    }

    #[test]
    fn writes_reach_the_device_whole_or_nobody() {
        let device = Arc::new(Recorder::default());
        let mut bus = Bus::new();
        bus.insert(0x3f8, 8, device.clone()).unwrap();
        bus.write(0x3f9, &[1, 2, 3]);
        bus.write(0x400, &[4]);
        assert_eq!(*device.0.lock().unwrap(), [(1, vec![1, 2, 3])]);
    }

    #[test]
    fn refuses_ranges_that_overlap_wrap_or_are_empty() {
        let mut bus = Bus::new();
        let device = || Arc::new(Recorder::default());
        bus.insert(0x10, 0x10, device()).unwrap();
        for (start, length) in [(0x1f, 1), (0x0, 0x11), (0x18, 2), (0, u64::MAX)] {
            let overlap = BusError::Overlap { start, other: 0x10 };
            assert_eq!(bus.insert(start, length, device()), Err(overlap));
        }
        for (start, length) in [(0x40, 0), (u64::MAX, 2)] {
            let bad = BusError::BadRange { start, length };
            assert_eq!(bus.insert(start, length, device()), Err(bad));
        }
    }
}
