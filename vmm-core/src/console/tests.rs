//! The console without a guest: megabytes through the serial port's registers, at a speed that
//! no guest reaches.

use std::io::{Read, Write, pipe};
use std::sync::Arc;

use sparkler_devices::BusDevice;
use vmm_sys_util::eventfd::EventFd;

use super::{Console, ConsoleThreads};
use crate::control::Control;
use crate::machine::SerialConsole;
use crate::timeline::Recorder;

const OUTPUT: usize = 20_000_000;
const INPUT: usize = 2_000_000;
const DATA: u64 = 0;
const LINE_STATUS: u64 = 5;

fn serial() -> SerialConsole {
    SerialConsole::new(Arc::new(EventFd::new(0).unwrap()), true, Console::BUFFER_SIZE).unwrap()
}

fn control() -> Arc<Control> {
    Arc::new(Control::new(1, Recorder::start()).unwrap())
}

#[test]
fn output_into_a_blocked_pipe_is_counted_to_the_byte() {
    let (mut reader, writer) = pipe().unwrap();
    let serial = serial();
    let mut threads = ConsoleThreads::start(
        Console::pollable_output(writer),
        &serial,
        &Arc::default(),
        &control(),
    )
    .unwrap();
    // Returning at all is half of the test: nobody reads.
    let line = [b'x'; 4096];
    let mut left = OUTPUT;
    while left > 0 {
        let count = left.min(line.len());
        serial.port.write(DATA, &line[..count]);
        left -= count;
    }
    threads.finish(true);
    let mut arrived = Vec::new();
    reader.read_to_end(&mut arrived).unwrap();
    let dropped = usize::try_from(serial.output.dropped()).unwrap();
    assert_eq!(arrived.len() + dropped, OUTPUT);
    // A pipe holds 64 KiB; what waited in the buffer was given up.
    assert!(arrived.len() <= 65_536, "{}", arrived.len());
}

#[test]
fn input_arrives_in_order_as_fast_as_it_is_read() {
    let (reader, mut writer) = pipe().unwrap();
    let serial = serial();
    let null = std::fs::File::options().write(true).open("/dev/null").unwrap();
    let mut threads = ConsoleThreads::start(
        Console::pollable(reader, null),
        &serial,
        &Arc::default(),
        &control(),
    )
    .unwrap();
    let feeder = std::thread::spawn(move || {
        let chunk: Vec<u8> = (0..250).collect(); // Divides the whole.
        for _ in 0..INPUT / chunk.len() {
            writer.write_all(&chunk).unwrap();
        }
    });
    let register = |offset| {
        let mut data = [0];
        serial.port.read(offset, &mut data);
        data[0]
    };
    // Each 64 bytes are a wake-up of the input thread.
    for number in 0..INPUT {
        while register(LINE_STATUS) & 1 == 0 {
            std::thread::yield_now();
        }
        assert_eq!(usize::from(register(DATA)), number % 250);
    }
    feeder.join().unwrap();
    threads.finish(true);
}
