//! The I/O APIC (Intel 82093AA): its inputs, which devices pull, become messages to the processors' local
//! APICs.
//!
//! KVM has one too. Outside the kernel it costs a guest an exit for each access to its registers, of
//! which there are few after boot; in return a machine has nothing in the kernel whose removal waits for
//! grace periods, which is most of what it takes to end one.
//!
//! All inputs are edge-triggered, whatever the guest makes of them: nothing stays asserted, so there is
//! no end of interrupt to wait for. An edge on a masked input is kept until it is unmasked.

use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{BusDevice, Interrupt};

/// An interrupt as a write to the local APICs, the way PCI's message-signalled interrupts are (Intel SDM,
/// volume 3, section 11.11).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Where it is written: which processors it is for.
    pub address: u32,
    /// What is written: the vector, and how it is delivered.
    pub data: u32,
}

/// Who delivers a [`Message`].
pub trait MessageSink: Send + Sync {
    /// Delivers it. Called on any thread; it must not block.
    ///
    /// # Errors
    /// If the interrupt is lost.
    fn send(&self, message: Message) -> io::Result<()>;
}

/// An I/O APIC with 24 inputs, of which input `n` is global system interrupt `n`.
pub struct IoApic {
    registers: Mutex<Registers>,
    sink: Box<dyn MessageSink>,
}

impl IoApic {
    /// Inputs that it has.
    pub const INPUTS: u32 = 24;
    /// Bytes of its range.
    pub const LENGTH: u64 = 0x100;

    /// Offset of the register that selects another one.
    const SELECT: u64 = 0;
    /// Offset of the selected register.
    const WINDOW: u64 = 0x10;

    /// One with all inputs masked.
    #[must_use]
    pub fn new(sink: Box<dyn MessageSink>) -> Self {
        Self { registers: Mutex::default(), sink }
    }

    /// Raises an interrupt on `input` once. An input that is not there is ignored.
    ///
    /// # Errors
    /// That of the sink.
    pub fn raise(&self, input: u32) -> io::Result<()> {
        let message = self.registers().input(input).and_then(Input::raise);
        message.map_or(Ok(()), |message| self.sink.send(message))
    }

    fn registers(&self) -> MutexGuard<'_, Registers> {
        // Valid after every step, so a panic elsewhere cannot spoil them.
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl BusDevice for IoApic {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let value = match offset {
            Self::SELECT => u32::from(registers.selected),
            Self::WINDOW => registers.read(),
            _ => 0,
        };
        drop(registers);
        data.fill(0);
        data.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, value)| *byte = value);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut value = [0; 4];
        value.iter_mut().zip(data).for_each(|(value, byte)| *value = *byte);
        let mut registers = self.registers();
        let message = match offset {
            Self::SELECT => {
                [registers.selected, ..] = value;
                None
            }
            Self::WINDOW => registers.write(u32::from_le_bytes(value)),
            _ => None,
        };
        drop(registers);
        if let Some(message) = message {
            // The guest meets a lost interrupt as it would a broken device.
            let _ = self.sink.send(message);
        }
    }

    fn reset(&self) {
        *self.registers() = Registers::default();
    }
}

impl fmt::Debug for IoApic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoApic").field("registers", &*self.registers()).finish_non_exhaustive()
    }
}

/// One input of an [`IoApic`], as a device sees it.
#[derive(Debug, Clone)]
pub struct IoApicInput {
    io_apic: Arc<IoApic>,
    input: u32,
}

impl IoApicInput {
    /// This input of `io_apic`.
    #[must_use]
    pub fn new(io_apic: Arc<IoApic>, input: u32) -> Self {
        Self { io_apic, input }
    }
}

impl Interrupt for IoApicInput {
    fn trigger(&self) -> io::Result<()> {
        self.io_apic.raise(self.input)
    }
}

#[derive(Debug)]
struct Registers {
    selected: u8,
    id: u32,
    inputs: [Input; IoApic::INPUTS as usize],
}

impl Default for Registers {
    fn default() -> Self {
        Self { selected: 0, id: 0, inputs: [Input::MASKED; IoApic::INPUTS as usize] }
    }
}

impl Registers {
    const ID: u8 = 0;
    const VERSION: u8 = 1;
    const ARBITRATION: u8 = 2;
    /// The first of two for each input.
    const REDIRECTION: u8 = 0x10;

    /// Of the original chip, which has no register for ends of interrupts; and the number of the last input.
    const VERSION_VALUE: u32 = 0x11 | ((IoApic::INPUTS - 1) << 16);
    const ID_MASK: u32 = 0xf << 24;

    fn input(&mut self, input: u32) -> Option<&mut Input> {
        self.inputs.get_mut(usize::try_from(input).ok()?)
    }

    /// The input whose redirection entry is selected, and whether it is its high half.
    fn selected_input(&self) -> Option<(usize, bool)> {
        let register = self.selected.checked_sub(Self::REDIRECTION)?;
        let input = usize::from(register >> 1);
        (input < self.inputs.len()).then_some((input, register & 1 != 0))
    }

    fn read(&self) -> u32 {
        match self.selected {
            Self::ID | Self::ARBITRATION => self.id,
            Self::VERSION => Self::VERSION_VALUE,
            _ => self.selected_input().map_or(0, |(input, high)| {
                self.inputs.get(input).map_or(0, |input| if high { input.high } else { input.low })
            }),
        }
    }

    /// What becomes due by it, if anything.
    fn write(&mut self, value: u32) -> Option<Message> {
        if self.selected == Self::ID {
            self.id = value & Self::ID_MASK;
            return None;
        }
        let (input, high) = self.selected_input()?;
        let input = self.inputs.get_mut(input)?;
        if high {
            input.high = value;
            return None;
        }
        input.low = value & Input::WRITABLE;
        if input.pending && !input.is_masked() { input.raise() } else { None }
    }
}

/// A redirection entry, and an edge that came while it was masked.
#[derive(Debug, Clone, Copy)]
struct Input {
    low: u32,
    high: u32,
    pending: bool,
}

impl Input {
    const MASKED: Self = Self { low: Self::MASK, high: 0, pending: false };
    const MASK: u32 = 1 << 16;
    const LOGICAL_DESTINATION: u32 = 1 << 11;
    /// Vector and delivery mode, which have the same places in a message.
    const HOW: u32 = 0x7ff;
    const LOWEST_PRIORITY: u32 = 1 << 8;
    const DELIVERY_MODE: u32 = 0b111 << 8;
    /// All but delivery status and remote IRR, which are never set here.
    const WRITABLE: u32 = 0x1_ffff & !(1 << 12 | 1 << 14);

    fn is_masked(&self) -> bool {
        self.low & Self::MASK != 0
    }

    fn raise(&mut self) -> Option<Message> {
        self.pending = self.is_masked();
        (!self.pending).then(|| self.message())
    }

    fn message(&self) -> Message {
        const LOCAL_APICS: u32 = 0xfee0_0000;
        const REDIRECTION_HINT: u32 = 1 << 3;
        const LOGICAL: u32 = 1 << 2;
        let mut address = LOCAL_APICS | (self.high >> 24) << 12;
        if self.low & Self::LOGICAL_DESTINATION != 0 {
            address |= LOGICAL;
        }
        if self.low & Self::DELIVERY_MODE == Self::LOWEST_PRIORITY {
            address |= REDIRECTION_HINT;
        }
        Message { address, data: self.low & Self::HOW }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Messages = Arc<Mutex<Vec<(u32, u32)>>>;

    #[derive(Default)]
    struct Sent(Messages);

    impl MessageSink for Sent {
        fn send(&self, message: Message) -> io::Result<()> {
            self.0.lock().unwrap().push((message.address, message.data));
            Ok(())
        }
    }

    fn new() -> (IoApic, Messages) {
        let sent = Sent::default();
        let messages = Arc::clone(&sent.0);
        (IoApic::new(Box::new(sent)), messages)
    }

    fn read(io_apic: &IoApic, register: u8) -> u32 {
        io_apic.write(0, &[register, 0, 0, 0]);
        let mut data = [0; 4];
        io_apic.read(0x10, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(io_apic: &IoApic, register: u8, value: u32) {
        io_apic.write(0, &[register]);
        io_apic.write(0x10, &value.to_le_bytes());
    }

    #[test]
    fn registers_are_those_of_the_data_sheet() {
        let (io_apic, _) = new();
        assert_eq!(read(&io_apic, 1), 0x17_0011);
        write(&io_apic, 0, u32::MAX);
        assert_eq!([0, 2].map(|register| read(&io_apic, register)), [0x0f00_0000; 2]);
        for input in 0..24 {
            assert_eq!(read(&io_apic, 0x10 + 2 * input), 0x1_0000, "masked");
        }
        write(&io_apic, 0x3e, u32::MAX);
        write(&io_apic, 0x3f, 0x1234_5678);
        assert_eq!([0x3e, 0x3f].map(|register| read(&io_apic, register)), [0x1_afff, 0x1234_5678]);
        // Read-only, or absent.
        for register in [1, 2, 3, 0xf, 0x40, 0x41, 0xff] {
            let before = read(&io_apic, register);
            write(&io_apic, register, 0x55);
            assert_eq!(read(&io_apic, register), before);
        }
    }

    #[test]
    fn an_edge_is_the_message_that_the_entry_says() {
        let (io_apic, sent) = new();
        let cases = [
            (0x31, 0x0500_0000, (0xfee0_5000, 0x31)), // fixed, physical
            (0x0932, 0x0300_0000, (0xfee0_300c, 0x132)), // lowest priority, logical
            (0xa8ff | 1 << 11, 0xff00_0000, (0xfeef_f004, 0xff)), // level is an edge all the same
            (0x0400, 0, (0xfee0_0000, 0x400)),        // NMI
        ];
        for (low, high, message) in cases {
            write(&io_apic, 0x10 + 2 * 5 + 1, high);
            write(&io_apic, 0x10 + 2 * 5, low);
            io_apic.raise(5).unwrap();
            assert_eq!(std::mem::take(&mut *sent.lock().unwrap()), [message]);
        }
    }

    #[test]
    fn an_edge_on_a_masked_input_is_kept_once() {
        let (io_apic, sent) = new();
        let input = IoApicInput::new(Arc::new(io_apic), 4);
        input.trigger().unwrap();
        input.trigger().unwrap();
        write(&input.io_apic, 0x18, 0x1_0040);
        assert!(sent.lock().unwrap().is_empty());
        write(&input.io_apic, 0x18, 0x40);
        write(&input.io_apic, 0x18, 0x40);
        assert_eq!(*sent.lock().unwrap(), [(0xfee0_0000, 0x40)]);
        // After a reset, all is masked, and nothing is pending.
        input.io_apic.reset();
        assert_eq!(read(&input.io_apic, 0x18), 0x1_0000);
        input.trigger().unwrap();
        input.io_apic.reset();
        write(&input.io_apic, 0x18, 0x40);
        assert_eq!(sent.lock().unwrap().len(), 1);
    }

    #[test]
    fn any_access_and_any_input_is_survived() {
        let (io_apic, sent) = new();
        for length in 0..=16 {
            for offset in (0..IoApic::LENGTH).chain([u64::MAX]) {
                io_apic.write(offset, &vec![0xff; length]);
                io_apic.read(offset, &mut vec![0; length]);
            }
        }
        for input in [24, 25, u32::MAX] {
            io_apic.raise(input).unwrap();
        }
        assert!(sent.lock().unwrap().is_empty());
    }
}
