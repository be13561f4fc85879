//! A virtio device of one's own: `cargo run -p sparkler --example custom_device`.
//!
//! It is an entropy device whose entropy comes from a seed, so that a guest which depends on chance can be
//! run again just as it was. The built-in guest has a driver for it, as Linux has.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sparkler::virtio::{DeviceError, Queue, Session, VirtioDevice};
use sparkler::{Kernel, MemorySize, Vm};

struct LoadedDice {
    state: u64,
    /// What the device has given; whoever has a clone can look, while the machine runs and after it.
    given: Arc<AtomicU64>,
}

impl VirtioDevice for LoadedDice {
    /// Virtio 1.2, section 5: 4 is the entropy device.
    fn device_type(&self) -> u32 {
        4
    }

    /// One queue with room for 64 requests.
    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    /// From the moment that the driver is ready until it resets the device or the machine ends. It runs on a
    /// thread of its own.
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        loop {
            self.serve(session.queue(0)?)?;
            if !session.wait(&[], None)? {
                return Ok(());
            }
        }
    }
}

impl LoadedDice {
    /// Fills every buffer that the driver has made available.
    fn serve(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        loop {
            while let Some(request) = queue.pop()? {
                // Never more than this at once, whatever the guest says it has room for.
                let bytes = self.roll(request.writable_len().min(4096));
                request.write_at(0, &bytes)?;
                queue.push(request, bytes.len())?;
                self.given.fetch_add(bytes.len() as u64, Ordering::Relaxed);
            }
            queue.notify()?;
            if !queue.enable_notifications()? {
                return Ok(()); // The driver will notify when there is more.
            }
        }
    }

    /// Marsaglia's xorshift.
    fn roll(&mut self, count: usize) -> Vec<u8> {
        let mut next = || {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            self.state.to_le_bytes()
        };
        let words = std::iter::repeat_with(&mut next).flatten();
        words.take(count).collect()
    }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let given = Arc::new(AtomicU64::new(0));
    let vm = Vm::builder()
        .memory(MemorySize::mib(16))
        .kernel(Kernel::bytes(sparkler_guest::ELF))
        // It takes entropy twice, and fails if that is constant or the same.
        .cmdline("test=rng code=0")
        .device(LoadedDice { state: 42, given: Arc::clone(&given) })
        .build()?;
    let outcome = vm.start()?.wait()?;
    println!("{outcome}, after {} bytes from the dice", given.load(Ordering::Relaxed));
    if outcome != sparkler::Outcome::Exited(0) || given.load(Ordering::Relaxed) == 0 {
        return Err("the guest did not take to the dice".into());
    }
    Ok(())
}
