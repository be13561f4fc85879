//! The 16550A UART, and the bounded buffers between it and the host.
//!
//! Neither direction can block a vCPU or grow the monitor. Output goes to an [`OutputBuffer`] of fixed
//! capacity; what does not fit is dropped and counted. Input is offered with [`SerialPort::enqueue`],
//! which takes as much as the UART's own FIFO holds; the rest stays with the host until the guest has
//! read, which `on_input_space` reports.

mod output;

use std::fmt;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_superio::Trigger;
use vm_superio::serial::{Serial, SerialEvents};

pub use self::output::OutputBuffer;
use crate::{BusDevice, Interrupt};

/// A 16550A UART on eight ports.
pub struct SerialPort {
    uart: Mutex<Uart>,
    interrupt: Arc<dyn Interrupt>,
    output: Option<Arc<OutputBuffer>>,
    on_input_space: Callback,
}

type Uart = Serial<Line, InputSpace, Output>;

type Callback = Arc<dyn Fn() + Send + Sync>;

impl SerialPort {
    /// First port of COM1.
    pub const COM1_PORT: u16 = 0x3f8;
    /// Interrupt of COM1.
    pub const COM1_IRQ: u32 = 4;
    /// Ports in its range.
    pub const LENGTH: u16 = 8;

    /// A UART that raises `interrupt` and sends the guest's output to `output` (nowhere, if `None`).
    ///
    /// `on_input_space` is called on a vCPU thread whenever [`enqueue`](Self::enqueue) may take bytes
    /// again; it must not block and must not call back into this UART.
    pub fn new(
        interrupt: impl Interrupt + 'static,
        output: Option<Arc<OutputBuffer>>,
        on_input_space: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let on_input_space: Callback = Arc::new(on_input_space);
        let interrupt: Arc<dyn Interrupt> = Arc::new(interrupt);
        let uart = Mutex::new(power_on(&interrupt, &output, &on_input_space));
        Self { uart, interrupt, output, on_input_space }
    }

    /// Offers `bytes` to the guest and returns how many were taken: as many as the FIFO has room for,
    /// none while the guest has the UART in loopback mode. If the interrupt cannot be raised, as while the
    /// machine starts anew, they are in the FIFO all the same.
    pub fn enqueue(&self, bytes: &[u8]) -> usize {
        let mut uart = self.uart();
        let taken = uart.fifo_capacity().min(bytes.len());
        let Some(bytes) = bytes.get(..taken).filter(|bytes| !bytes.is_empty()) else {
            return 0;
        };
        match uart.enqueue_raw_bytes(bytes) {
            Ok(taken) => taken,
            Err(vm_superio::serial::Error::FullFifo) => 0,
            Err(error) => {
                log::debug!("serial interrupt: {error}");
                taken
            }
        }
    }

    fn uart(&self) -> MutexGuard<'_, Uart> {
        // The UART's registers are valid after every step, so a panic elsewhere cannot spoil them.
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SerialPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialPort").field("registers", &self.uart().state()).finish()
    }
}

impl BusDevice for SerialPort {
    /// A longer access reads the same register again for each byte, as `rep insb` does.
    fn read(&self, offset: u64, data: &mut [u8]) {
        let Ok(offset) = u8::try_from(offset) else { return data.fill(0xff) };
        let mut uart = self.uart();
        data.fill_with(|| uart.read(offset));
    }

    /// A longer access writes the same register again for each byte, as `rep outsb` does.
    fn write(&self, offset: u64, data: &[u8]) {
        const MODEM_CONTROL: u8 = 4;
        let Ok(offset) = u8::try_from(offset) else { return };
        let mut uart = self.uart();
        for &value in data {
            // The output never fails (see `Output`), and an interrupt that cannot be raised is one
            // that the guest will not miss: it polls or it hangs, and that is its own affair.
            if let Err(error) = uart.write(offset, value) {
                log::debug!("serial interrupt: {error}");
            }
        }
        drop(uart);
        if offset == MODEM_CONTROL {
            // Loopback may just have ended, and with it the reason why input had to wait.
            (self.on_input_space)();
        }
    }

    /// Registers and FIFO are as at power-on; what the guest printed stays printed.
    fn reset(&self) {
        *self.uart() = power_on(&self.interrupt, &self.output, &self.on_input_space);
        (self.on_input_space)();
    }
}

fn power_on(
    interrupt: &Arc<dyn Interrupt>,
    output: &Option<Arc<OutputBuffer>>,
    on_input_space: &Callback,
) -> Uart {
    let events = InputSpace(Arc::clone(on_input_space));
    Serial::with_events(Line(Arc::clone(interrupt)), events, Output(output.clone()))
}

/// [`Interrupt`] in the words of `vm-superio`.
struct Line(Arc<dyn Interrupt>);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.trigger()
    }
}

struct InputSpace(Callback);

impl SerialEvents for InputSpace {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        (self.0)();
    }
}

/// The UART's transmitter: it never fails and never blocks.
struct Output(Option<Arc<OutputBuffer>>);

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(buffer) = &self.0 {
            buffer.push(bytes);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const DATA: u64 = 0;
    const INTERRUPT_ENABLE: u64 = 1;
    const MODEM_CONTROL: u64 = 4;
    const LINE_STATUS: u64 = 5;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Count {
        fn get(&self) -> usize {
            self.0.load(Ordering::SeqCst)
        }
    }

    impl Interrupt for Count {
        fn trigger(&self) -> io::Result<()> {
            self.0.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }
    }

    struct Rig {
        port: SerialPort,
        output: Arc<OutputBuffer>,
        interrupts: Arc<Count>,
        spaces: Arc<Count>,
    }

    fn rig() -> Rig {
        let output = Arc::new(OutputBuffer::new(16, || {}));
        let interrupts = Arc::new(Count::default());
        let spaces = Arc::new(Count::default());
        let on_space = Arc::clone(&spaces);
        let port = SerialPort::new(Arc::clone(&interrupts), Some(Arc::clone(&output)), move || {
            on_space.trigger().unwrap();
        });
        Rig { port, output, interrupts, spaces }
    }

    fn read(port: &SerialPort, offset: u64) -> u8 {
        let mut data = [0];
        port.read(offset, &mut data);
        data[0]
    }

    #[test]
    fn string_writes_arrive_in_order_and_overflow_is_counted() {
        let rig = rig();
        rig.port.write(DATA, b"0123456789");
        rig.port.write(DATA, b"abcdefghij");
        let mut seen = Vec::new();
        rig.output.take(&mut seen, 100);
        assert_eq!(seen, b"0123456789abcdef");
        assert_eq!(rig.output.dropped(), 4);
    }

    #[test]
    fn input_is_taken_as_the_fifo_has_room_and_space_is_reported() {
        let rig = rig();
        rig.port.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(rig.port.enqueue(&[7; 100]), 64);
        assert_eq!(rig.interrupts.get(), 1);
        assert_eq!(rig.port.enqueue(b"x"), 0);
        for _ in 0..64 {
            assert_eq!(rig.spaces.get(), 0);
            assert_eq!(read(&rig.port, LINE_STATUS) & 1, 1);
            assert_eq!(read(&rig.port, DATA), 7);
        }
        assert_eq!(rig.spaces.get(), 1);
        assert_eq!(read(&rig.port, LINE_STATUS) & 1, 0);
        assert_eq!(rig.port.enqueue(b"x"), 1);
    }

    #[test]
    fn input_stays_when_nobody_can_be_interrupted() {
        struct Deaf;
        impl Interrupt for Deaf {
            fn trigger(&self) -> io::Result<()> {
                Err(io::ErrorKind::NotConnected.into())
            }
        }
        let port = SerialPort::new(Deaf, None, || {});
        port.write(INTERRUPT_ENABLE, &[1]);
        assert_eq!(port.enqueue(b"x"), 1);
        assert_eq!(read(&port, DATA), b'x');
    }

    #[test]
    fn loopback_delays_input_and_its_end_asks_for_it_again() {
        let rig = rig();
        rig.port.write(MODEM_CONTROL, &[0x10]);
        let before = rig.spaces.get();
        assert_eq!(rig.port.enqueue(b"x"), 0);
        rig.port.write(DATA, b"l");
        assert_eq!(read(&rig.port, DATA), b'l');
        rig.port.write(MODEM_CONTROL, &[0x08]);
        assert!(rig.spaces.get() > before);
        assert_eq!(rig.port.enqueue(b"x"), 1);
        assert_eq!(rig.output.dropped(), 0);
    }

    #[test]
    fn any_access_of_any_width_is_survived() {
        let rig = rig();
        for offset in (0..12).chain([255, 256, u64::MAX]) {
            for width in [0, 1, 2, 4, 8, 1024] {
                rig.port.write(offset, &vec![0x5a; width]);
                rig.port.read(offset, &mut vec![0; width]);
            }
        }
    }
}
