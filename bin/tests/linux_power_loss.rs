//! The monitor is killed while its guest writes: what a completed flush covered is in the image.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Bytes of a record; the first page of the disk holds none.
const RECORD: usize = 4096;
const SIZE: u64 = 64 << 20;
/// How many records the guest gets to write before each kill.
const ENOUGH: [u64; 2] = [100, 400];

#[test]
#[ignore = "needs the lab"]
fn what_a_completed_flush_covered_survives_the_monitor() {
    let folder = tempfile::tempdir().unwrap();
    let image = folder.path().join("image");
    for enough in ENOUGH {
        File::create(&image).unwrap().set_len(SIZE).unwrap();
        let promised = write_until_killed(image.to_str().unwrap(), enough);
        let bytes = fs::read(&image).unwrap();
        // The disk has room for more than what is written: no record replaces another.
        assert!(promised < SIZE / RECORD as u64, "{promised}");
        for number in 1..=promised {
            let place = usize::try_from(number).unwrap() * RECORD;
            assert!(
                bytes[place..place + RECORD] == record(number),
                "{number} of {promised} is lost"
            );
        }
        println!("killed after a flush of {promised} records: all are there");
    }
}

/// The number of the last record whose flush the guest saw complete.
fn write_until_killed(image: &str, enough: u64) -> u64 {
    let variable = |name| std::env::var(name).unwrap_or_else(|_| panic!("{name} must name a file"));
    let mut sparkler = Command::new(env!("CARGO_BIN_EXE_sparkler"));
    sparkler.args(["run", &variable("SPARKLER_KERNEL"), "--initrd", &variable("SPARKLER_INITRD")]);
    sparkler.args(["--cmdline", "console=ttyS0 quiet panic=-1 records=/dev/vda"]);
    sparkler.args(["--disk", image]);
    let mut sparkler = sparkler.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut promised = 0;
    let mut killed = false;
    // What was on its way to us at the kill was promised before it.
    for line in BufReader::new(sparkler.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        // The last line may be cut short.
        let number = line.trim_end_matches('\r').strip_prefix("durable: ");
        let Some(Ok(number)) = number.map(str::parse::<u64>) else { continue };
        promised = promised.max(number);
        if promised >= enough && !killed {
            sparkler.kill().unwrap();
            killed = true;
        }
    }
    sparkler.wait().unwrap();
    assert!(killed, "the guest ended by itself after {promised} records");
    promised
}

/// See lab/init/src/records.rs.
fn record(number: u64) -> Vec<u8> {
    (0..RECORD as u64 / 8).flat_map(|word| (number ^ word << 48).to_le_bytes()).collect()
}
