//! The ways in which a guest ends its machine: ACPI sleep and reset registers, the i8042's reset
//! line, and the exit port.
//!
//! Each is a device that reports a [`PowerEvent`] to a [`PowerSink`]; what follows is the machine's
//! affair. None has any state, so none can be left half-way.

use crate::BusDevice;

/// The exit port. QEMU's `isa-debug-exit` is usually put there too.
pub const EXIT_PORT: u16 = 0xf4;

/// First port of the i8042 (data); the command and status port is four higher.
pub const I8042_PORT: u16 = 0x60;
/// Ports in its range.
pub const I8042_LENGTH: u16 = 5;

/// Port of the ACPI sleep control register, the first of three.
pub const ACPI_SLEEP_CONTROL_PORT: u16 = 0x600;
/// Port of the ACPI sleep status register.
pub const ACPI_SLEEP_STATUS_PORT: u16 = 0x601;
/// Port of the ACPI reset register.
pub const ACPI_RESET_PORT: u16 = 0x602;
/// Ports of the three together.
pub const ACPI_LENGTH: u16 = 3;
/// Written to the reset register, this resets.
pub const ACPI_RESET_VALUE: u8 = 1;
/// Sleep type of S5 (soft off), as `\_S5` must announce it.
pub const ACPI_SLEEP_TYPE_S5: u8 = 5;

/// What the guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum PowerEvent {
    /// The guest wrote its exit code to the exit port.
    Exit(u8),
    /// The guest asked for a reset.
    Reset,
    /// The guest switched itself off.
    PowerOff,
}

/// Who hears of a [`PowerEvent`]. Called on the vCPU thread of the guest's access: it must not block.
pub trait PowerSink: Send + Sync {
    /// The guest asked for `event`.
    fn power(&self, event: PowerEvent);
}

impl<F: Fn(PowerEvent) + Send + Sync> PowerSink for F {
    fn power(&self, event: PowerEvent) {
        self(event);
    }
}

/// One port; a byte written to it is the guest's exit code.
#[derive(Debug)]
pub struct ExitPort<S>(S);

impl<S: PowerSink> ExitPort<S> {
    /// An exit port that reports to `sink`.
    pub fn new(sink: S) -> Self {
        Self(sink)
    }
}

impl<S: PowerSink> BusDevice for ExitPort<S> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    /// The lowest byte counts, however wide the write.
    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&code) = data.first() {
            self.0.power(PowerEvent::Exit(code));
        }
    }
}

/// The keyboard controller's one service to a PC without a keyboard: pulsing the reset line.
///
/// Command 0xfe written to port 0x64 resets. The status register says that commands are taken, and that
/// there is data to read, however much was read: by that Linux sees at once that there is no keyboard
/// controller, where it would wait seconds for one that does not answer.
#[derive(Debug)]
pub struct I8042<S>(S);

impl<S: PowerSink> I8042<S> {
    const COMMAND_OFFSET: u64 = 4;
    const COMMAND_PULSE_RESET: u8 = 0xfe;
    const STATUS_OUTPUT_FULL: u8 = 1;

    /// A controller that reports to `sink`.
    pub fn new(sink: S) -> Self {
        Self(sink)
    }
}

impl<S: PowerSink> BusDevice for I8042<S> {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(if offset == Self::COMMAND_OFFSET { Self::STATUS_OUTPUT_FULL } else { 0 });
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == Self::COMMAND_OFFSET && data.first() == Some(&Self::COMMAND_PULSE_RESET) {
            self.0.power(PowerEvent::Reset);
        }
    }
}

/// The registers of a hardware-reduced ACPI platform (ACPI 6.5, section 4.8.3.7): sleep control,
/// sleep status, and the reset register that the FADT names.
#[derive(Debug)]
pub struct AcpiRegisters<S>(S);

impl<S: PowerSink> AcpiRegisters<S> {
    const SLEEP_CONTROL_OFFSET: u64 = 0;
    const RESET_OFFSET: u64 = 2;
    const SLEEP_ENABLE: u8 = 1 << 5;
    const SLEEP_TYPE_SHIFT: u8 = 2;
    const SLEEP_TYPE_MASK: u8 = 0b111;

    /// Registers that report to `sink`.
    pub fn new(sink: S) -> Self {
        Self(sink)
    }
}

impl<S: PowerSink> BusDevice for AcpiRegisters<S> {
    /// Sleep status never has WAK_STS set: this machine does not wake up.
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let sleep_type = (value >> Self::SLEEP_TYPE_SHIFT) & Self::SLEEP_TYPE_MASK;
        match offset {
            Self::SLEEP_CONTROL_OFFSET
                if value & Self::SLEEP_ENABLE != 0 && sleep_type == ACPI_SLEEP_TYPE_S5 =>
            {
                self.0.power(PowerEvent::PowerOff);
            }
            Self::RESET_OFFSET if value == ACPI_RESET_VALUE => self.0.power(PowerEvent::Reset),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Every byte at every offset of a device, and which of them did something.
    fn effects<D: BusDevice>(
        device: impl Fn(&'static Mutex<Vec<PowerEvent>>) -> D,
    ) -> Vec<(u64, u8, PowerEvent)> {
        let seen: &'static Mutex<Vec<PowerEvent>> = Box::leak(Box::default());
        let device = device(seen);
        let mut effects = Vec::new();
        for offset in 0..8 {
            for value in 0..=u8::MAX {
                device.write(offset, &[value]);
                effects.extend(seen.lock().unwrap().drain(..).map(|event| (offset, value, event)));
            }
            device.write(offset, &[]);
        }
        assert!(seen.lock().unwrap().is_empty(), "an empty write did something");
        effects
    }

    #[test]
    fn i8042_resets_on_its_command_only() {
        let effects = effects(|seen| I8042::new(|event| seen.lock().unwrap().push(event)));
        assert_eq!(effects, [(4, 0xfe, PowerEvent::Reset)]);
        let device = I8042::new(|_| {});
        let read = |offset| {
            let mut data = [0xff];
            device.read(offset, &mut data);
            data[0]
        };
        // For ever data to read, and never a command that is not taken yet.
        assert_eq!([0, 4, 4].map(read), [0, 1, 1]);
    }

    #[test]
    fn acpi_registers_act_on_s5_with_enable_and_on_the_reset_value_only() {
        let effects = effects(|seen| AcpiRegisters::new(|event| seen.lock().unwrap().push(event)));
        let (off, reset): (Vec<_>, Vec<_>) = effects.iter().partition(|(offset, ..)| *offset == 0);
        assert_eq!(reset, [&(2, 1, PowerEvent::Reset)]);
        // SLP_EN and SLP_TYP 5; the reserved bits do not matter.
        assert!(off.contains(&&(0, 0x34, PowerEvent::PowerOff)));
        assert!(
            off.iter()
                .all(|(_, value, event)| value & 0x3c == 0x34 && *event == PowerEvent::PowerOff)
        );
        assert_eq!(off.len(), 16);
    }

    #[test]
    fn the_exit_port_takes_the_lowest_byte() {
        let seen = Mutex::new(Vec::new());
        let port = ExitPort::new(|event| seen.lock().unwrap().push(event));
        port.write(0, &[42]);
        port.write(0, &[7, 1, 2, 3]);
        port.write(0, &[]);
        assert_eq!(*seen.lock().unwrap(), [PowerEvent::Exit(42), PowerEvent::Exit(7)]);
    }
}
