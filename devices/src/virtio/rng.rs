//! The entropy device (virtio 1.2, 5.4).

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vm_memory::ReadVolatile;

use super::{Chain, Counters, DeviceError, Queue, Session, VirtioDevice};

/// Most bytes for one request; a driver that wants more asks again. The kernel makes 64 KiB in well
/// under a millisecond, so a reset never waits for long.
const MOST: usize = 64 << 10;

/// A source of entropy for the guest: the host kernel's, `/dev/urandom`.
#[derive(Debug)]
pub struct Rng {
    source: File,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
}

impl Counters for Counts {
    fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
        each("requests", self.requests.load(Ordering::Relaxed));
        each("bytes", self.bytes.load(Ordering::Relaxed));
    }
}

impl Rng {
    /// An entropy device.
    ///
    /// # Errors
    /// If `/dev/urandom` cannot be opened.
    pub fn new() -> io::Result<Self> {
        File::open("/dev/urandom").map(|source| Self { source, counts: Arc::default() })
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
            self.source
                .read_exact_volatile(&mut slice?)
                .map_err(|error| DeviceError::Device(error.into()))?;
        }
        self.counts.requests.fetch_add(1, Ordering::Relaxed);
        self.counts.bytes.fetch_add(u64::try_from(len).unwrap_or(0), Ordering::Relaxed);
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

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.counts) as _
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
