//! Devices of the caller's own, at ports and addresses of the caller's choice.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;

use sparkler_devices::boot_mark::BOOT_MARK_PORT;
use sparkler_devices::power;
use sparkler_devices::serial::SerialPort;
use sparkler_devices::{Bus, BusDevice, BusError};
use thiserror::Error;

use crate::arch::x86_64;
use crate::memory::Ranges;
use crate::virtio_slots;

/// A device of the caller's own cannot be where it was asked to be.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum OwnDeviceError {
    /// The range has no address in it.
    #[error("the range of a device, {first:#x} to {last:#x}, is empty")]
    Empty {
        /// The first address.
        first: u64,
        /// The last one, which comes before it.
        last: u64,
    },
    /// Something else answers there.
    #[error(
        "a device at {space} {first:#x} to {last:#x} is not possible: {other}, from \
         {other_first:#x} to {other_last:#x}, is in its way"
    )]
    Overlap {
        /// Which addresses.
        space: AddressSpace,
        /// The first address.
        first: u64,
        /// The last one.
        last: u64,
        /// What is there already.
        other: &'static str,
        /// Its first address.
        other_first: u64,
        /// Its last one.
        other_last: u64,
    },
    /// The processor cannot address it.
    #[error(
        "a device at address {first:#x} to {last:#x} is not possible: addresses end at {end:#x}"
    )]
    Beyond {
        /// The first address.
        first: u64,
        /// The last one.
        last: u64,
        /// The first that this host's processor cannot give to a guest.
        end: u64,
    },
}

/// Where a device can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum AddressSpace {
    /// I/O ports.
    Ports,
    /// Guest-physical addresses.
    Addresses,
}

impl fmt::Display for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ports => "port",
            Self::Addresses => "address",
        })
    }
}

/// What was asked for.
#[derive(Default)]
pub(crate) struct OwnDevices(Vec<OwnDevice>);

struct OwnDevice {
    space: AddressSpace,
    range: RangeInclusive<u64>,
    device: Arc<dyn BusDevice>,
}

/// What is there already, and its name.
type Taken = (RangeInclusive<u64>, &'static str);

impl OwnDevices {
    pub(crate) fn add(
        &mut self,
        space: AddressSpace,
        range: RangeInclusive<u64>,
        device: Arc<dyn BusDevice>,
    ) {
        self.0.push(OwnDevice { space, range, device });
    }

    /// That each can be where it shall be.
    pub(crate) fn check(&self, acpi: bool, memory: &Ranges) -> Result<(), OwnDeviceError> {
        let mut ports = taken_ports(acpi);
        let mut addresses = taken_addresses(memory);
        for OwnDevice { space, range, .. } in &self.0 {
            let taken = match space {
                AddressSpace::Ports => &mut ports,
                AddressSpace::Addresses => &mut addresses,
            };
            let (first, last) = (*range.start(), *range.end());
            if range.is_empty() {
                return Err(OwnDeviceError::Empty { first, last });
            }
            let overlaps = |(other, _): &&Taken| *other.start() <= last && first <= *other.end();
            if let Some((range, other)) = taken.iter().find(overlaps) {
                let (space, other) = (*space, *other);
                let (other_first, other_last) = (*range.start(), *range.end());
                return Err(OwnDeviceError::Overlap {
                    space,
                    first,
                    last,
                    other,
                    other_first,
                    other_last,
                });
            }
            taken.push((range.clone(), "another device of your own"));
        }
        Ok(())
    }

    /// That the processor can address each of them.
    pub(crate) fn check_below(&self, end: u64) -> Result<(), OwnDeviceError> {
        let mut ranges = self.0.iter().map(|device| &device.range);
        match ranges.find(|range| *range.end() >= end) {
            Some(range) => {
                Err(OwnDeviceError::Beyond { first: *range.start(), last: *range.end(), end })
            }
            None => Ok(()),
        }
    }

    /// Puts them onto the buses.
    pub(crate) fn insert(self, ports: &mut Bus, addresses: &mut Bus) -> Result<(), BusError> {
        for OwnDevice { space, range, device } in self.0 {
            let bus = match space {
                AddressSpace::Ports => &mut *ports,
                AddressSpace::Addresses => &mut *addresses,
            };
            let length = range.end().saturating_sub(*range.start()).saturating_add(1);
            bus.insert(*range.start(), length, device)?;
        }
        Ok(())
    }
}

impl fmt::Debug for OwnDevices {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |device: &OwnDevice| format!("{} {:#x?}", device.space, device.range);
        f.debug_list().entries(self.0.iter().map(range)).finish()
    }
}

fn taken_ports(acpi: bool) -> Vec<Taken> {
    let from = |first: u16, length: u16| {
        u64::from(first)..=u64::from(first.saturating_add(length.saturating_sub(1)))
    };
    let mut taken = vec![
        (from(SerialPort::COM1_PORT, SerialPort::LENGTH), "COM1"),
        (from(power::I8042_PORT, power::I8042_LENGTH), "the i8042"),
        (from(power::EXIT_PORT, 1), "the exit port"),
        (from(BOOT_MARK_PORT, 1), "the boot-mark port"),
        (from(power::ACPI_SLEEP_CONTROL_PORT, power::ACPI_LENGTH), "ACPI's registers"),
    ];
    taken.extend(x86_64::PORTS_OF_PICS.map(|range| (range, "an interrupt controller")));
    // KVM answers there itself; nothing of it would arrive here.
    if !acpi {
        taken.extend(x86_64::PORTS_OF_PIT.map(|range| (range, "KVM's timer")));
    }
    taken
}

fn taken_addresses(memory: &Ranges) -> Vec<Taken> {
    let memory = memory.iter().map(|range| (range.start..=range.end.saturating_sub(1), "memory"));
    let mut taken: Vec<_> = memory.collect();
    taken.push((virtio_slots::WINDOWS, "the place for virtio devices"));
    taken.extend(x86_64::ADDRESSES_OF_KVM.map(|range| (range, "an interrupt controller or KVM")));
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemorySize;

    struct Nothing;

    impl BusDevice for Nothing {
        fn read(&self, _offset: u64, _data: &mut [u8]) {}
        fn write(&self, _offset: u64, _data: &[u8]) {}
    }

    fn devices(space: AddressSpace, ranges: &[RangeInclusive<u64>]) -> OwnDevices {
        let mut devices = OwnDevices::default();
        for range in ranges {
            devices.add(space, range.clone(), Arc::new(Nothing));
        }
        devices
    }

    fn in_the_way(
        space: AddressSpace,
        range: RangeInclusive<u64>,
        acpi: bool,
    ) -> Option<&'static str> {
        let memory = Ranges::new(MemorySize::gib(4));
        match devices(space, &[range]).check(acpi, &memory) {
            Err(OwnDeviceError::Overlap { other, .. }) => Some(other),
            Err(error) => panic!("{error}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn what_is_there_already_is_named() {
        let port = |range| in_the_way(AddressSpace::Ports, range, true);
        assert_eq!(port(0x3ff..=0x400), Some("COM1"));
        assert_eq!(port(0xf4..=0xf4), Some("the exit port"));
        assert_eq!(port(0x1f..=0x20), Some("an interrupt controller"));
        assert_eq!((port(0x300..=0x3f7), port(0x400..=0x4cf)), (None, None));
        assert_eq!((port(0x40..=0x43), port(0xffff..=0xffff)), (None, None));
        assert_eq!(in_the_way(AddressSpace::Ports, 0x40..=0x40, false), Some("KVM's timer"));

        let address = |range| in_the_way(AddressSpace::Addresses, range, true);
        assert_eq!(address(0xbfff_ffff..=0xc000_0000), Some("memory"));
        assert_eq!(address(0x1_3fff_ffff..=0x2_0000_0000), Some("memory"));
        assert_eq!(address(0xd00f_f000..=0xd00f_ffff), Some("the place for virtio devices"));
        assert_eq!(address(0xfee0_0800..=0xfee0_0801), Some("an interrupt controller or KVM"));
        assert_eq!(address(0xfffc_0000..=0xfffc_0000), Some("an interrupt controller or KVM"));
        assert_eq!((address(0xc000_0000..=0xcfff_ffff), address(1 << 40..=1 << 41)), (None, None));
    }

    #[test]
    fn own_devices_keep_out_of_each_others_way() {
        let memory = Ranges::new(MemorySize::mib(16));
        let check = |ranges: &[_]| devices(AddressSpace::Ports, ranges).check(true, &memory);
        assert_eq!(check(&[0x100..=0x10f, 0x110..=0x11f]), Ok(()));
        let error = check(&[0x100..=0x10f, 0x10f..=0x11f]).unwrap_err().to_string();
        assert_eq!(
            error,
            "a device at port 0x10f to 0x11f is not possible: another device of your own, from \
             0x100 to 0x10f, is in its way"
        );
        #[allow(clippy::reversed_empty_ranges)] // That is the mistake.
        let empty = check(&[0x10..=0xf]);
        assert_eq!(empty, Err(OwnDeviceError::Empty { first: 0x10, last: 0xf }));
    }
}
