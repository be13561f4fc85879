//! What the virtio tests share: a device that does as it is told, and the life signs of a transport.
#![allow(dead_code, unreachable_pub)] // Each test file uses its own part, and none exports any.

pub mod scenarios;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sparkler_devices::virtio::mock::MockDriver;
use sparkler_devices::virtio::{
    Chain, ConfigBytes, ConfigSpace, DeviceError, Queue, Session, VirtioDevice,
};

/// Entries in queue 0 of a [`TestDevice`].
pub const SIZE: u16 = 16;
/// Entries in queue 1.
pub const LARGE: u16 = 128;

/// A device with two queues and a configuration space of eight bytes. It copies what it reads of a
/// request to what it may write, unless the request begins with
/// - `hold`: it keeps the request until the session ends, then gives it back;
/// - `fail`: it fails, as if the host had;
/// - `panic`: it panics.
#[derive(Default)]
pub struct TestDevice {
    pub config: Arc<ConfigBytes>,
    /// How often `run` was called.
    pub sessions: Arc<AtomicU32>,
    /// The features of the last session.
    pub negotiated: Arc<AtomicU64>,
}

impl TestDevice {
    /// A driver for one, all reset.
    pub fn driver() -> MockDriver {
        let config = Arc::new(ConfigBytes::new([1, 2, 3, 4, 5, 6, 7, 8]));
        MockDriver::new(Box::new(Self { config, ..Self::default() }))
    }

    /// A driver for one, live with all features.
    pub fn live() -> MockDriver {
        let mut driver = Self::driver();
        driver.start();
        driver
    }
}

impl VirtioDevice for TestDevice {
    fn device_type(&self) -> u32 {
        42
    }

    fn features(&self) -> u64 {
        1 | 1 << 40
    }

    fn queue_sizes(&self) -> &[u16] {
        &[SIZE, LARGE]
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.config.clone()
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.sessions.fetch_add(1, Ordering::SeqCst);
        self.negotiated.store(session.features(), Ordering::SeqCst);
        let mut held = Vec::new();
        loop {
            for queue in session.queues() {
                serve(queue, &mut held)?;
            }
            if !session.wait(&[], None)? {
                for (queue, chain) in held {
                    session.queue(queue)?.push(chain, 0)?;
                }
                return Ok(());
            }
        }
    }
}

fn serve(queue: &mut Queue, held: &mut Vec<(u16, Chain)>) -> Result<(), DeviceError> {
    loop {
        queue.disable_notifications()?;
        while let Some(chain) = queue.pop()? {
            let mut command = [0; 5];
            chain.read_at(0, &mut command[..chain.readable_len().min(5)])?;
            match &command {
                b"hold\0" => held.push((queue.index(), chain)),
                b"fail\0" => return Err(std::io::Error::other("out of ink").into()),
                b"panic" => panic!("as it was told to"),
                _ => {
                    let written = echo(&chain)?;
                    queue.push(chain, written)?;
                }
            }
        }
        queue.notify()?;
        if !queue.enable_notifications()? {
            return Ok(());
        }
    }
}

/// Copies through guest memory as a device would, at most 1 MiB.
pub fn echo(chain: &Chain) -> Result<usize, DeviceError> {
    let len = chain.readable_len().min(chain.writable_len()).min(1 << 20);
    let mut bytes = vec![0; len];
    chain.read_at(0, &mut bytes)?;
    chain.write_at(0, &bytes)?;
    Ok(len)
}

/// The device works after a reset, and ends within a second.
pub fn assert_works_after_reset(driver: &mut MockDriver) {
    driver.reset();
    assert_eq!(driver.status(), 0);
    driver.start();
    assert_eq!(driver.request(0, &[b"still", b" here"], &[3, 20]), b"still here");
    assert_stops(driver);
}

/// The transport lets go within a second.
pub fn assert_stops(driver: &MockDriver) {
    let begin = Instant::now();
    driver.transport().stop();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?} to stop", begin.elapsed());
}
