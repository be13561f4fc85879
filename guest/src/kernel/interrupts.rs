//! `test=interrupts`: the timer of the local APIC, and the UART through the IOAPIC. `test=button`: an
//! interrupt that the host decides on.

use crate::apic::{self, Apic};
use crate::clock::Deadline;
use crate::cmdline::Cmdline;
use crate::cpl0::{self, TIMER_VECTOR, UART_VECTOR, interrupts as count};
use crate::exit_code::{NO_TIMER_INTERRUPT, NO_UART_INTERRUPT, UART_LOOPBACK};
use crate::port::{in8, out8};
use crate::{TestResult, uart};

/// About a millisecond: KVM's local APIC counts nanoseconds.
const TIMER_TICKS: u32 = 1_000_000;
const UART_LINE: u32 = 4;
const BUTTON_LINE: u32 = 3;
/// For all interrupts of one kind.
const MILLISECONDS: u64 = 5_000;
const DEFAULT_INTERRUPTS: u64 = 10;

const RECEIVED_INTERRUPT: u8 = 1;
const TRANSMITTED_INTERRUPT: u8 = 2;
const OUT2: u8 = 8;
const LOOPBACK: u8 = 0x10;

pub(crate) fn run(cmdline: &Cmdline) -> TestResult {
    let wanted = cmdline.number(b"interrupts")?.unwrap_or(DEFAULT_INTERRUPTS);
    let apic = Apic::open()?;
    apic::mask_pics();
    cpl0::set_interrupts(true);

    apic.start_timer(TIMER_TICKS);
    let ticked = arrive(TIMER_VECTOR, wanted);
    apic.stop_timer();
    uart::key_value(b"timer_interrupts", count(TIMER_VECTOR));
    if !ticked {
        return Err(NO_TIMER_INTERRUPT);
    }

    apic::route(UART_LINE, UART_VECTOR, apic.id());
    let result = transmit(wanted).and_then(|()| receive());
    out8(uart::INTERRUPT_ENABLE, 0);
    out8(uart::MODEM_CONTROL, OUT2);
    cpl0::set_interrupts(false);
    uart::text(b"\n");
    uart::key_value(b"uart_interrupts", count(UART_VECTOR));
    result
}

/// Waits, for as long as it takes, for the interrupt of input `gsi=N` of the IOAPIC. It stands for what a kernel
/// with ACPI does when the power button is pressed.
pub(crate) fn button(cmdline: &Cmdline) -> TestResult {
    let line = cmdline.number(b"gsi")?.unwrap_or(BUTTON_LINE.into());
    let apic = Apic::open()?;
    apic::mask_pics();
    cpl0::set_interrupts(true);
    apic::route(line as u32, UART_VECTOR, apic.id());
    uart::text(b"waiting for the button\n");
    while count(UART_VECTOR) == 0 {
        core::hint::spin_loop();
    }
    cpl0::set_interrupts(false);
    uart::text(b"the button was pressed\n");
    Ok(())
}

/// Sends `wanted` dots; each must be followed by the interrupt that says that it is sent.
fn transmit(wanted: u64) -> TestResult {
    out8(uart::MODEM_CONTROL, OUT2);
    out8(uart::INTERRUPT_ENABLE, TRANSMITTED_INTERRUPT);
    for _ in 0..wanted {
        uart::wait_for_transmitter();
        // Reading this register acknowledges an interrupt that enabling may have raised.
        in8(uart::INTERRUPT_IDENTIFICATION);
        let before = count(UART_VECTOR);
        out8(uart::DATA, b'.');
        if !arrive(UART_VECTOR, before + 1) {
            return Err(NO_UART_INTERRUPT);
        }
    }
    in8(uart::INTERRUPT_IDENTIFICATION);
    Ok(())
}

/// Receives a byte from itself.
fn receive() -> TestResult {
    const BYTE: u8 = 0x5a;
    out8(uart::INTERRUPT_ENABLE, RECEIVED_INTERRUPT);
    out8(uart::MODEM_CONTROL, OUT2 | LOOPBACK);
    let before = count(UART_VECTOR);
    out8(uart::DATA, BYTE);
    let arrived = arrive(UART_VECTOR, before + 1);
    let received = uart::receive();
    match (arrived, received) {
        (false, _) => Err(NO_UART_INTERRUPT),
        (true, Some(BYTE)) => Ok(()),
        (true, _) => Err(UART_LOOPBACK),
    }
}

fn arrive(vector: usize, wanted: u64) -> bool {
    Deadline::after(MILLISECONDS).wait_until(|| count(vector) >= wanted)
}
