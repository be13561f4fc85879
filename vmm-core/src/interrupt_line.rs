//! Interrupt lines for devices of the caller's own.

use std::io;
use std::ops::RangeInclusive;
use std::sync::{Arc, OnceLock, Weak};

use sparkler_devices::Interrupt;
use thiserror::Error;

use crate::arch::x86_64::{Interrupts, Line};

/// An interrupt for a device of your own: give one clone to the device, and another to
/// [`VmBuilder::interrupt_line`](crate::VmBuilder::interrupt_line), which says which interrupt it is.
///
/// [`trigger`](Interrupt::trigger) raises it once (an edge), from any thread, and does not block. One that comes
/// while the machine is paused is kept, as one however many there were; and so is one that comes while the guest has
/// it masked, but for machines [without ACPI](crate::VmBuilder::acpi): KVM's own I/O APIC, which they have, loses it.
/// It is an error before the machine is built and after it is gone.
///
/// ```no_run
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicU8, Ordering};
/// use sparkler::{BusDevice, Interrupt, InterruptLine, Kernel, Vm};
///
/// /// One byte for the guest, with an interrupt when it has changed.
/// #[derive(Default)]
/// struct Doorbell {
///     value: AtomicU8,
///     line: InterruptLine,
/// }
///
/// impl Doorbell {
///     fn ring(&self, value: u8) -> std::io::Result<()> {
///         self.value.store(value, Ordering::SeqCst);
///         self.line.trigger()
///     }
/// }
///
/// impl BusDevice for Doorbell {
///     fn read(&self, _offset: u64, data: &mut [u8]) {
///         data.fill(self.value.load(Ordering::SeqCst));
///     }
///     fn write(&self, _offset: u64, _data: &[u8]) {}
/// }
///
/// let doorbell = Arc::new(Doorbell::default());
/// let running = Vm::builder()
///     .kernel(Kernel::file("/boot/vmlinuz")?)
///     .port_device(0x510..=0x510, doorbell.clone())
///     .interrupt_line(7, &doorbell.line)
///     .build()?
///     .start()?;
/// doorbell.ring(42)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct InterruptLine(Arc<OnceLock<Weak<Line>>>);

impl InterruptLine {
    /// The global system interrupts that it can be: inputs of the I/O APIC that nothing else has. Virtio devices
    /// take what is left of them.
    pub const GSIS: RangeInclusive<u32> = 5..=22;

    /// One that is connected to nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn connect(&self, gsi: u32, line: &Arc<Line>) -> Result<(), InterruptLineError> {
        self.0.set(Arc::downgrade(line)).map_err(|_| InterruptLineError::Connected { gsi })
    }
}

impl Interrupt for InterruptLine {
    fn trigger(&self) -> io::Result<()> {
        self.0.get().and_then(Weak::upgrade).ok_or(io::ErrorKind::NotConnected)?.trigger()
    }
}

/// An interrupt line cannot be had as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum InterruptLineError {
    /// The interrupt is not one for devices of the caller's own.
    #[error(
        "an interrupt line at GSI {gsi} is not possible: choose one from {} to {}",
        InterruptLine::GSIS.start(),
        InterruptLine::GSIS.end()
    )]
    Gsi {
        /// What was asked for.
        gsi: u32,
    },
    /// Two lines are to be the same interrupt.
    #[error("two interrupt lines are at GSI {gsi}: give one of them another, or clone one line")]
    Twice {
        /// Which one.
        gsi: u32,
    },
    /// The line is that of another machine, or of another interrupt.
    #[error(
        "the interrupt line for GSI {gsi} is that of another interrupt already: make a new one"
    )]
    Connected {
        /// What it was to be here.
        gsi: u32,
    },
}

/// What was asked for: a GSI, and what shall raise it.
#[derive(Debug, Default)]
pub(crate) struct OwnLines(Vec<(u32, InterruptLine)>);

impl OwnLines {
    pub(crate) fn add(&mut self, gsi: u32, line: InterruptLine) {
        self.0.push((gsi, line));
    }

    /// That each can be what it shall be.
    pub(crate) fn check(&self) -> Result<(), InterruptLineError> {
        for (index, &(gsi, ref line)) in self.0.iter().enumerate() {
            if !InterruptLine::GSIS.contains(&gsi) {
                return Err(InterruptLineError::Gsi { gsi });
            }
            if self.0.iter().take(index).any(|(earlier, _)| *earlier == gsi) {
                return Err(InterruptLineError::Twice { gsi });
            }
            let earlier =
                self.0.iter().take(index).any(|(_, other)| Arc::ptr_eq(&other.0, &line.0));
            if earlier || line.0.get().is_some() {
                return Err(InterruptLineError::Connected { gsi });
            }
        }
        Ok(())
    }

    pub(crate) fn contains(&self, gsi: u32) -> bool {
        self.0.iter().any(|(own, _)| *own == gsi)
    }

    /// The other end of each, in order.
    pub(crate) fn inputs(&self, controllers: &Interrupts) -> io::Result<Vec<Arc<Line>>> {
        self.0.iter().map(|(gsi, _)| controllers.line(*gsi).map(Arc::new)).collect()
    }

    /// Connects each to its [input](Self::inputs).
    pub(crate) fn connect(&self, inputs: &[Arc<Line>]) -> Result<(), InterruptLineError> {
        let mut lines = self.0.iter().zip(inputs);
        lines.try_for_each(|((gsi, line), input)| line.connect(*gsi, input))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(gsis: &[u32]) -> Result<(), InterruptLineError> {
        let mut lines = OwnLines::default();
        gsis.iter().for_each(|gsi| lines.add(*gsi, InterruptLine::new()));
        lines.check()
    }

    #[test]
    fn a_line_is_one_interrupt_of_its_own() {
        assert_eq!(checked(&[5, 22, 10]), Ok(()));
        assert_eq!(checked(&[5, 4]), Err(InterruptLineError::Gsi { gsi: 4 }));
        assert_eq!(checked(&[23]), Err(InterruptLineError::Gsi { gsi: 23 }));
        assert_eq!(checked(&[7, 8, 7]), Err(InterruptLineError::Twice { gsi: 7 }));
    }

    #[test]
    fn a_line_is_connected_once() {
        let line = InterruptLine::new();
        assert_eq!(line.trigger().unwrap_err().kind(), io::ErrorKind::NotConnected);
        let mut lines = OwnLines::default();
        lines.add(9, line.clone());
        assert_eq!(lines.check(), Ok(()));
        let controllers = Interrupts::new(true);
        let inputs = lines.inputs(&controllers).unwrap();
        assert_eq!(lines.connect(&inputs), Ok(()));
        assert_eq!(lines.check(), Err(InterruptLineError::Connected { gsi: 9 }));
        line.trigger().unwrap(); // Kept: the guest has it masked.
        drop(inputs);
        assert_eq!(line.trigger().unwrap_err().kind(), io::ErrorKind::NotConnected);
    }

    #[test]
    fn a_line_is_not_two_interrupts() {
        let line = InterruptLine::new();
        let mut lines = OwnLines::default();
        lines.add(9, line.clone());
        lines.add(10, line);
        assert_eq!(lines.check(), Err(InterruptLineError::Connected { gsi: 10 }));
    }
}
