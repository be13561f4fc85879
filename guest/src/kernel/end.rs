//! The ways to end.

use crate::cmdline::Cmdline;
use crate::port::out8;
use crate::{cpl0, exit_code, uart};

const EXIT: u16 = 0xf4;
const I8042_COMMAND: u16 = 0x64;
const ACPI_SLEEP_CONTROL: u16 = 0x600;
const ACPI_RESET: u16 = 0x602;

/// Ends a test that succeeded as `end=` and `code=` ask.
pub(crate) fn as_asked(cmdline: &Cmdline) -> ! {
    let code = match cmdline.number(b"code") {
        Ok(code) => code.map_or(exit_code::SUCCESS, |code| code as u8),
        Err(failed) => failure(failed),
    };
    match cmdline.value(b"end").unwrap_or(b"exit") {
        b"exit" => exit(code),
        b"reset" => out8(I8042_COMMAND, 0xfe),
        b"acpi-reset" => out8(ACPI_RESET, 1),
        b"poweroff" => out8(ACPI_SLEEP_CONTROL, 0x34),
        b"triple" => cpl0::triple_fault(),
        b"hang" => hang(),
        b"halt" => cpl0::halt(),
        _ => failure(exit_code::BAD_COMMAND_LINE),
    }
    // The way that was asked for is absent here.
    by_any_means()
}

/// Ends a test that failed.
pub(crate) fn failure(code: u8) -> ! {
    uart::text(b"sparkler guest: failed, code 0x");
    uart::number(u64::from(code), 16);
    uart::text(b"\n");
    exit(code)
}

/// Spins at CPL 3 forever, interrupts off.
pub(crate) fn hang() -> ! {
    loop {
        core::hint::spin_loop();
    }
}

fn exit(code: u8) -> ! {
    out8(EXIT, code);
    by_any_means()
}

/// Still here: this monitor has no exit port, or no such way to reset. Ends the machine by whatever
/// it has instead.
fn by_any_means() -> ! {
    out8(I8042_COMMAND, 0xfe);
    out8(ACPI_RESET, 1);
    cpl0::triple_fault()
}
