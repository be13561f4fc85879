//! A writer that takes nothing. One test: it watches the memory of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::io::{self, Read, Write, pipe};

use sparkler::{Console, Outcome};

use crate::common::guest;

/// Resident memory of this process that is not guest memory, in KiB.
fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// A writer that takes nothing until it is dropped.
struct Blocked(io::PipeWriter);

impl Write for Blocked {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_blocked_writer_does_not_hold_up_the_guest_and_drops_are_counted() {
    // More than the pipe and the buffer hold. A pollable writer under much more: `console/tests.rs`.
    const BYTES: u64 = 340_000;
    let (mut reader, writer) = pipe().unwrap();
    let console = Console::output(Blocked(writer));
    let vm = guest(&format!("quiet test=print bytes={BYTES}")).console(console).build().unwrap();
    let before = resident_kib();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    let dropped = running.stats().console_output_dropped;
    // Nobody reads: the pipe takes 64 KiB, all else is dropped and counted, none twice.
    let grown = resident_kib().saturating_sub(before);
    assert!(grown < 4096, "grew by {grown} KiB");
    drop(running);
    let mut arrived = Vec::new();
    reader.read_to_end(&mut arrived).unwrap();
    let arrived = u64::try_from(arrived.len()).unwrap();
    assert!(arrived <= 65_536, "{arrived}");
    // One write of at most 4 KiB was in the writer's hands when it was left behind.
    assert!((BYTES - 4096..=BYTES).contains(&(arrived + dropped)), "{arrived} + {dropped}");
}
