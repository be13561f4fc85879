//! The entropy device (virtio 1.2, 5.4).

use std::fs::File;
use std::io;

use vm_memory::ReadVolatile;

use super::{Chain, DeviceError, Queue, Session, VirtioDevice};

/// Most bytes for one request; a driver that wants more asks again. The kernel makes 64 KiB in well
/// under a millisecond, so a reset never waits for long.
const MOST: usize = 64 << 10;

/// A source of entropy for the guest: the host kernel's, `/dev/urandom`.
#[derive(Debug)]
pub struct Rng(File);

impl Rng {
    /// An entropy device.
    ///
    /// # Errors
    /// If `/dev/urandom` cannot be opened.
    pub fn new() -> io::Result<Self> {
        File::open("/dev/urandom").map(Self)
    }

    fn serve(&mut self, queue: &mut Queue) -> Result<(), DeviceError> {
        loop {
            while let Some(chain) = queue.pop()? {
                let filled = self.fill(&chain)?;
                queue.push(chain, filled)?;
            }
            queue.notify()?;
            if !queue.enable_notifications()? {
                return Ok(());
            }
        }
    }

    fn fill(&mut self, chain: &Chain) -> Result<usize, DeviceError> {
        let len = chain.writable_len().min(MOST);
        for slice in chain.writable_slices(0..len) {
            self.0
                .read_exact_volatile(&mut slice?)
                .map_err(|error| DeviceError::Device(error.into()))?;
        }
        Ok(len)
    }
}

impl VirtioDevice for Rng {
    fn device_type(&self) -> u32 {
        4
    }

    fn queue_sizes(&self) -> &[u16] {
        &[64]
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        loop {
            self.serve(session.queue(0)?)?;
            if !session.wait(&[], None)? {
                return Ok(());
            }
        }
    }
}
