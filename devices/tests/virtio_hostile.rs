//! A hostile driver against a live device: the device asks for a reset, works after it, and stops.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod virtio_common;

use std::sync::{Arc, OnceLock};

use sparkler_devices::virtio::mock::{MockDriver, MockRing};
use sparkler_devices::virtio::{DeviceError, Session, VirtioDevice};
use virtio_bindings::bindings::virtio_mmio as reg;
use virtio_common::{SIZE, TestDevice, assert_stops, assert_works_after_reset, scenarios};
use vm_memory::GuestAddress;

macro_rules! tests {
    ($($name:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            let mut driver = TestDevice::live();
            scenarios::$name(&mut driver);
            driver.wait_for_needs_reset();
            // The configuration interrupt says so (virtio 1.2, 2.1.2).
            assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS) & 2, 2);
            assert_works_after_reset(&mut driver);
        })*
    };
}

for_each_scenario!(tests);

#[test]
fn descriptors_flip_during_use() {
    let mut driver = TestDevice::live();
    scenarios::descriptors_flip(&mut driver, 3000);
    assert_works_after_reset(&mut driver);
}

#[test]
fn zero_length_descriptors_carry_nothing_and_harm_nothing() {
    let mut driver = TestDevice::live();
    let outside = GuestAddress(u64::MAX);
    let ring = driver.ring(0);
    ring.set_descriptor(0, outside, 0, scenarios::NEXT, 1);
    ring.set_descriptor(1, outside, 0, scenarios::WRITE, 0);
    ring.offer(0);
    driver.notify(0);
    let interrupt = driver.interrupt().clone();
    let used = interrupt.wait_until("the empty request", || driver.ring(0).take_used());
    assert_eq!((used.id, used.len), (0, 0));
    assert!(!driver.needs_reset());
    assert_works_after_reset(&mut driver);
}

/// Its driver never pauses: each request is offered again as soon as it is used.
struct Treadmill(Arc<OnceLock<MockRing>>);

impl VirtioDevice for Treadmill {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        let mut driver = self.0.get().unwrap().clone();
        driver.offer(0);
        loop {
            let queue = session.queue(0)?;
            while let Some(chain) = queue.pop()? {
                queue.push(chain, 0)?;
                queue.notify()?;
                driver.offer(0);
            }
            if !session.wait(&[], None)? {
                return Ok(());
            }
        }
    }
}

#[test]
fn stop_does_not_wait_for_a_driver_that_never_pauses() {
    let ring = Arc::new(OnceLock::new());
    let mut driver = MockDriver::new(Box::new(Treadmill(ring.clone())));
    ring.set(driver.ring(0).clone()).unwrap();
    driver.start_with(0);
    let interrupt = driver.interrupt();
    interrupt.wait_until("traffic", || (interrupt.count() > 100).then_some(()));
    assert_stops(&driver);
}
