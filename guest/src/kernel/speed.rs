//! `test=speed`: how fast the CPU runs the kernel's code, and the user's.

use core::arch::asm;

use crate::cmdline::Cmdline;
use crate::{TestResult, clock, cpl0, uart};

/// Ticks of the time-stamp counter that a measurement takes at least: some milliseconds.
const MIN_TICKS: u64 = 10_000_000;
const INSTRUCTIONS_PER_ITERATION: u64 = 2;

pub(crate) fn run(cmdline: &Cmdline) -> TestResult {
    let khz = clock::tsc_khz(cmdline)?;
    uart::key_value(b"cpl0_instructions_per_second", per_second(cpl0::count_down, khz));
    uart::key_value(b"cpl3_instructions_per_second", per_second(count_down, khz));
    uart::key_value(b"tsc_khz", khz);
    Ok(())
}

/// Runs ever longer loops until one takes long enough to tell. 0 where nothing tells the time.
fn per_second(count_down: fn(u64), khz: u64) -> u64 {
    if khz == 0 {
        return 0;
    }
    let mut iterations = 1_000;
    loop {
        let ticks = fastest(|| count_down(iterations));
        if ticks >= MIN_TICKS {
            let microseconds = ticks * 1000 / khz;
            return iterations * INSTRUCTIONS_PER_ITERATION * 1_000_000 / microseconds.max(1);
        }
        iterations *= 2;
    }
}

/// The ticks that the fastest of three runs took: the host may do something else during one.
fn fastest(run: impl Fn()) -> u64 {
    let mut least = u64::MAX;
    for _ in 0..3 {
        let start = clock::now();
        run();
        least = least.min(clock::now().wrapping_sub(start));
    }
    least
}

/// The same loop as at CPL 0.
fn count_down(iterations: u64) {
    // SAFETY: changes one register.
    unsafe {
        asm!("2: dec {0}", "jnz 2b", inout(reg) iterations => _, options(nomem, nostack));
    }
}
