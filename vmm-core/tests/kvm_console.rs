//! The console under stress: neither direction blocks the guest or grows the monitor.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::io::{self, Write, pipe};

use sparkler::{Console, Outcome};

use crate::common::{Captured, guest};

#[test]
#[ignore = "needs /dev/kvm"]
fn a_slow_reader_of_the_console_gets_everything_in_order() {
    let captured = Captured::default();
    let vm = guest("test=print bytes=50000 quiet").console(captured.console()).build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
    assert_eq!(running.stats().console_output_dropped, 0);
    assert_eq!(captured.text().len(), 50_000);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn input_arrives_whole_however_slowly_the_guest_reads() {
    let bytes: Vec<u8> = (0..20_000u32).flat_map(|n| n.to_le_bytes()).collect();
    // 64-bit FNV-1a, which the guest computes too.
    let sum = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let captured = Captured::default();
    let console = Console::new(io::Cursor::new(bytes.clone()), captured.clone());
    let cmdline = format!("quiet test=sink bytes={}", bytes.len());
    let vm = guest(&cmdline).console(console).build().unwrap();
    let outcome = vm.start().unwrap().wait().unwrap();
    assert_eq!(outcome, Outcome::Exited(0), "{}", captured.text());
    let text = captured.text();
    let expected = [format!("bytes={}", bytes.len()), format!("fnv1a={sum:016x}")];
    assert!(expected.iter().all(|line| text.contains(line)), "{text} instead of {expected:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn input_that_no_guest_reads_stays_with_the_host() {
    let (reader, mut writer) = pipe().unwrap();
    let feeder = std::thread::spawn(move || {
        let chunk = [b'x'; 4096];
        let mut sent = 0usize;
        // Ends when the machine, and with it the pipe's other end, is gone.
        while writer.write_all(&chunk).is_ok() {
            sent += chunk.len();
        }
        sent
    });
    let null = fs::File::options().write(true).open("/dev/null").unwrap();
    let running = guest("test=hang")
        .console(Console::pollable(reader, null))
        .build()
        .unwrap()
        .start()
        .unwrap();
    drop(running);
    let sent = feeder.join().unwrap();
    assert!(sent <= 65_536 + 4096, "the monitor took {sent} bytes that nobody asked for");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_writer_that_fails_does_not_disturb_the_guest() {
    struct Fails;
    impl Write for Fails {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let console = Console::output(Fails);
    let vm = guest("quiet test=print bytes=10000 code=7").console(console).build().unwrap();
    let running = vm.start().unwrap();
    assert_eq!(running.wait().unwrap(), Outcome::Exited(7));
    assert!(running.stats().console_output_dropped > 0);
}
