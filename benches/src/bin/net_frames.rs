//! How many frames a second the built-in guest sends and receives on this host's KVM: to a network that
//! takes all, from one that always has more, and between two guests with a cable between them.
//!
//! ```text
//! net_frames [--frames=N]
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use sparkler::virtio::net::{BackendError, Frame, FrameHeader, Net, NetBackend, Room};
use sparkler::{Console, Kernel, MemorySize, Outcome, RunningVm, Vm};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Without their check sequence: the shortest frame that Ethernet has, and a full one.
const SIZES: [usize; 2] = [60, 1514];
const WAYS: [&str; 2] = ["poll", "halt"];
/// Where the built-in guest's frames have their length and their number.
const LENGTH: usize = 14;
const NUMBER: usize = 16;

fn main() -> Result<()> {
    let mut frames = 200_000;
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--frames", count)) => frames = count.parse()?,
            _ => return Err(format!("no flag {argument}; there is --frames=N").into()),
        }
    }
    println!("built-in guest, this host's KVM, {frames} frames: thousand frames a second\n");
    println!("bytes  waits by       out        in      pair");
    for size in SIZES {
        for way in WAYS {
            let words = |role: &str| {
                format!(
                    "quiet test=net blind plain role={role} frames={frames} size={size} wait={way} depth=256 buffers=256"
                )
            };
            let out = rate(start(&words("flood"), Net::backend(Everything))?)?;
            let within = rate(start(&words("sink"), Net::backend(Endless::new(size)))?)?;
            let (one, other) = Net::pair()?;
            let sink = start(&words("sink"), one)?;
            let flood = start(&words("flood"), other)?;
            let pair = rate(sink)?;
            rate(flood)?;
            println!("{size:5}  {way:8} {out:9.0} {within:9.0} {pair:9.0}");
        }
    }
    Ok(())
}

/// Takes all, and has nothing.
struct Everything;

impl NetBackend for Everything {
    fn send(&mut self, _: &Frame<'_>) -> std::result::Result<(), BackendError> {
        Ok(())
    }

    fn receive(&mut self, _: &mut Room<'_>) -> std::result::Result<(), BackendError> {
        Err(BackendError::WouldBlock)
    }
}

/// Always has one more frame.
struct Endless {
    frame: Vec<u8>,
    number: u64,
}

impl Endless {
    fn new(size: usize) -> Self {
        let mut frame = vec![0xff; size];
        put(&mut frame, LENGTH - 2, &[0x88, 0xb5]);
        put(&mut frame, LENGTH, &u16::try_from(size).unwrap_or(0).to_le_bytes());
        Self { frame, number: 0 }
    }
}

impl NetBackend for Endless {
    fn send(&mut self, _: &Frame<'_>) -> std::result::Result<(), BackendError> {
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> std::result::Result<(), BackendError> {
        put(&mut self.frame, NUMBER, &self.number.to_le_bytes());
        room.put(FrameHeader::default(), &self.frame)?;
        self.number += 1;
        Ok(())
    }
}

fn put(frame: &mut [u8], at: usize, bytes: &[u8]) {
    for (to, from) in frame.iter_mut().skip(at).zip(bytes) {
        *to = *from;
    }
}

fn start(cmdline: &str, net: Net) -> Result<(RunningVm, Printed)> {
    let printed = Printed::default();
    let vm = Vm::builder()
        .memory(MemorySize::mib(32))
        .kernel(Kernel::bytes(sparkler_guest::ELF))
        .cmdline(cmdline)
        .console(Console::output(printed.clone()))
        .net(net)
        .build()?;
    Ok((vm.start()?, printed))
}

/// Thousands a second, as the guest has it.
fn rate((running, printed): (RunningVm, Printed)) -> Result<f64> {
    let outcome = running.wait()?;
    drop(running);
    let text = printed.0.lock().unwrap_or_else(PoisonError::into_inner);
    let text = String::from_utf8_lossy(&text);
    if outcome != Outcome::Exited(0) {
        return Err(format!("{outcome}: {text}").into());
    }
    let rate = text.lines().find_map(|line| line.strip_prefix("frames_per_second="));
    Ok(rate.ok_or("the guest printed no rate")?.parse::<f64>()? / 1000.0)
}

/// Collects what a guest prints.
#[derive(Clone, Default)]
struct Printed(Arc<Mutex<Vec<u8>>>);

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
