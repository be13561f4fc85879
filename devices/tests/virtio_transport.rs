//! The registers of the MMIO transport: identity, status, features, queue setup, reset and stop.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod virtio_common;

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use sparkler_devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC, VERSION_1};
use sparkler_devices::virtio::mock::{HOLE, MockDriver, MockInterrupt, PATIENCE};
use sparkler_devices::virtio::status::{
    ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK,
};
use sparkler_devices::virtio::{
    ConfigBytes, ConfigSpace, Counters, DeviceError, MmioTransport, Queue, QueueSizeError, Session,
    VirtioDevice, Waker,
};
use sparkler_devices::{BusDevice, Interrupt};
use virtio_bindings::bindings::virtio_mmio as reg;
use virtio_common::{LARGE, SIZE, TestDevice, assert_stops, assert_works_after_reset};
use vm_memory::{GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const KNOWN: u32 = ACKNOWLEDGE | DRIVER;
const AGREED: u32 = KNOWN | FEATURES_OK;
const LIVE: u32 = AGREED | DRIVER_OK;

const OFFERED: u64 = 1 | 1 << 40 | VERSION_1 | RING_EVENT_IDX | RING_INDIRECT_DESC;

#[test]
fn says_what_it_is() {
    let driver = TestDevice::driver();
    assert_eq!(driver.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VERSION), 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_ID), 42);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_VENDOR_ID), 0x4b52_5053);
    assert_eq!(driver.offered(), OFFERED);
    driver.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, 2);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_DEVICE_FEATURES), 0);
    for (queue, max) in [(0, SIZE.into()), (1, LARGE.into()), (2, 0), (0x1_0000, 0), (u32::MAX, 0)]
    {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX), max);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
}

/// Says of everything something else than the trait does by itself.
struct Unusual;

impl VirtioDevice for Unusual {
    fn device_type(&self) -> u32 {
        43
    }

    fn features(&self) -> u64 {
        1 << 5
    }

    fn queue_sizes(&self) -> &[u16] {
        &[8, 8]
    }

    fn kicks(&self) -> u16 {
        2
    }

    fn check(&self) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Err("unusual".into())
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(ConfigBytes::new([9]))
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::new(Seven)
    }

    fn run(&mut self, _session: &mut Session) -> Result<(), DeviceError> {
        Ok(())
    }
}

struct Seven;

impl Counters for Seven {
    fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
        each("seven", 7);
    }
}

/// Whatever it is given, generics see the box.
fn describe(device: impl VirtioDevice) -> String {
    let (mut config, mut counters) = ([0], Vec::new());
    device.config().read(0, &mut config);
    device.counters().read(&mut |name, value| counters.push((name, value)));
    format!(
        "{} {:#x} {:?} {} {:?} {config:?} {counters:?}",
        device.device_type(),
        device.features(),
        device.queue_sizes(),
        device.kicks(),
        device.check().map_err(|error| error.to_string()),
    )
}

#[test]
fn a_boxed_device_is_the_device() {
    let boxed: Box<dyn VirtioDevice> = Box::new(Unusual);
    let said = describe(boxed);
    assert_eq!(said, describe(Unusual));
    assert_eq!(said, r#"43 0x20 [8, 8] 2 Err("unusual") [9] [("seven", 7)]"#);

    let boxed: Box<dyn VirtioDevice> = Box::new(TestDevice::default());
    let mut driver = MockDriver::new(Box::new(boxed));
    driver.start();
    assert_works_after_reset(&mut driver);
}

#[test]
fn shared_memory_reads_as_all_ones_whichever_is_selected() {
    let driver = TestDevice::driver();
    for select in [0, 1, 255, u32::MAX] {
        driver.write(reg::VIRTIO_MMIO_SHM_SEL, select);
        for register in (reg::VIRTIO_MMIO_SHM_LEN_LOW..=reg::VIRTIO_MMIO_SHM_BASE_HIGH).step_by(4) {
            assert_eq!(driver.read(register), u32::MAX, "{register:#x}");
        }
    }
}

#[test]
fn a_status_step_left_out_of_order_or_unknown_is_ignored() {
    let driver = TestDevice::driver();
    let refused = |values: &[u32]| {
        let before = driver.status();
        for &value in values {
            driver.set_status(value);
            assert_eq!(driver.status(), before, "after {value:#x}");
        }
    };
    refused(&[DRIVER, FEATURES_OK, DRIVER_OK, AGREED, LIVE, DEVICE_NEEDS_RESET, 0x10, 0x100]);
    driver.set_status(ACKNOWLEDGE);
    refused(&[DRIVER, AGREED, LIVE, ACKNOWLEDGE | FEATURES_OK, 1 << 31]);
    driver.set_status(KNOWN);
    refused(&[ACKNOWLEDGE, DRIVER, LIVE, KNOWN | DRIVER_OK, AGREED | 0x10]);
    driver.set_status(0);
    assert!(driver.negotiate(VERSION_1));
    refused(&[ACKNOWLEDGE, KNOWN, DRIVER_OK, LIVE | 0x20, AGREED | DEVICE_NEEDS_RESET]);
    driver.driver_ok();
    assert_eq!(driver.status(), LIVE);
    refused(&[ACKNOWLEDGE, KNOWN, AGREED, DRIVER_OK]);
}

#[test]
fn firmware_may_acknowledge_and_know_in_one_step() {
    let driver = TestDevice::driver();
    driver.set_status(KNOWN);
    assert_eq!(driver.status(), KNOWN);
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_a_bit_not_offered() {
    let mut driver = TestDevice::driver();
    for features in [0, OFFERED & !VERSION_1, OFFERED | 2, VERSION_1 | 1 << 63, u64::MAX] {
        assert!(!driver.negotiate(features), "{features:#x}");
        assert_eq!(driver.status(), KNOWN);
        driver.reset();
    }
    for features in [VERSION_1, VERSION_1 | 1, OFFERED] {
        assert!(driver.negotiate(features), "{features:#x}");
        driver.reset();
    }
}

#[test]
fn a_driver_that_was_refused_may_try_other_features() {
    let driver = TestDevice::driver();
    assert!(!driver.negotiate(0));
    assert!(driver.negotiate(VERSION_1));
}

#[test]
fn features_above_the_64th_are_refused() {
    let driver = TestDevice::driver();
    driver.set_status(KNOWN);
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 2);
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    assert!(!driver.negotiate(VERSION_1));
}

#[test]
fn features_count_only_between_driver_and_features_ok() {
    let device = TestDevice::default();
    let negotiated = device.negotiated.clone();
    let driver = MockDriver::new(Box::new(device));
    let write_version_1 = || {
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1);
        driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 1);
    };
    write_version_1();
    driver.set_status(ACKNOWLEDGE);
    write_version_1();
    driver.set_status(KNOWN);
    driver.set_status(AGREED);
    assert_eq!(driver.status(), KNOWN, "written too early");
    write_version_1();
    driver.set_status(AGREED);
    assert_eq!(driver.status(), AGREED);
    // Too late: taking it back has no effect on what was agreed.
    driver.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, 0);
    driver.driver_ok();
    assert_eq!(driver.status(), LIVE);
    driver.set_status(0); // The device has run by then.
    assert_eq!(negotiated.load(Ordering::SeqCst), VERSION_1);
}

#[test]
fn queue_registers_are_frozen_once_ready_and_once_live() {
    let mut driver = TestDevice::driver();
    // Too early: a queue needs the features.
    driver.set_status(KNOWN);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);

    assert!(driver.negotiate(OFFERED));
    driver.ring(0).set_features(OFFERED);
    driver.set_up_queue(0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
    scribble_over_queue(&driver);
    driver.driver_ok();
    scribble_over_queue(&driver);
    assert_eq!(driver.request(0, &[b"as before"], &[9]), b"as before");

    // A queue that was left out cannot be added to a live device.
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 1);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_works_after_reset(&mut driver);
}

fn scribble_over_queue(driver: &MockDriver) {
    for register in [reg::VIRTIO_MMIO_QUEUE_NUM, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4] {
        driver.write(register, 0xffff_fff0);
    }
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 2);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, u32::MAX);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 1);
}

#[test]
fn a_queue_that_is_made_unready_can_be_set_up_anew() {
    let mut driver = TestDevice::driver();
    assert!(driver.negotiate(VERSION_1));
    driver.set_up_queue(0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_NUM, 3);
    driver.set_up_queue(0); // With a size of 16 again.
    driver.driver_ok();
    assert_eq!(driver.request(0, &[b"x"], &[1]), b"x");
}

#[test]
fn a_live_queue_that_is_made_unready_is_left_alone_at_once() {
    let mut driver = TestDevice::live();
    driver.submit(0, &[b"hold"], &[4]);
    driver.request(1, &[b"the device has seen both"], &[64]);
    driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, 0);
    driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    assert_eq!(driver.poll(0), Some((SIZE - 1 - 15, vec![])), "given back before the write ended");
    assert_works_after_reset(&mut driver);
}

#[test]
fn queues_of_bad_sizes_need_a_reset_at_driver_ok() {
    let mut driver = TestDevice::driver();
    for size in [0, 3, 15, 17, 32, 0x8000, 0x1_0000, 0x1_0010, u32::MAX] {
        assert!(driver.negotiate(VERSION_1));
        driver.set_up_queue(0);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        driver.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        driver.driver_ok();
        assert_eq!(driver.status(), LIVE | DEVICE_NEEDS_RESET, "size {size:#x}");
        assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 2);
        driver.reset();
    }
    for size in [1, 2, 8, 16] {
        assert!(driver.negotiate(VERSION_1));
        driver.set_up_queue(0);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
        driver.write(reg::VIRTIO_MMIO_QUEUE_NUM, size);
        driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        driver.driver_ok();
        assert_eq!(driver.status(), LIVE, "size {size}");
        driver.reset();
    }
    assert_works_after_reset(&mut driver);
}

#[test]
fn rings_outside_ram_need_a_reset_at_driver_ok() {
    let mut driver = TestDevice::driver();
    for register in [0x80, 0x90, 0xa0] {
        for address in [0, HOLE.0, HOLE.0 - 16, u64::MAX - 15, 0x1_0001, 1 << 40] {
            assert!(driver.negotiate(VERSION_1));
            driver.set_up_queue(0);
            driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 0);
            driver.write(register, u32::try_from(address & 0xffff_ffff).unwrap());
            driver.write(register + 4, u32::try_from(address >> 32).unwrap());
            driver.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
            driver.driver_ok();
            assert!(driver.needs_reset(), "{register:#x} = {address:#x}");
            driver.reset();
        }
    }
    assert_works_after_reset(&mut driver);
}

#[test]
fn without_any_queue_a_device_is_live_and_idle() {
    let mut driver = TestDevice::driver();
    assert!(driver.negotiate(VERSION_1));
    driver.driver_ok();
    driver.notify(0);
    driver.notify(77);
    assert_eq!(driver.status(), LIVE);
    assert_works_after_reset(&mut driver);
}

#[test]
fn requests_offered_and_notified_before_driver_ok_are_found() {
    let mut driver = TestDevice::driver();
    driver.notify(0);
    assert!(driver.negotiate(OFFERED));
    driver.ring(0).set_features(OFFERED);
    driver.set_up_queue(0);
    let head = driver.submit(0, &[b"early"], &[5]);
    driver.notify(0);
    assert_eq!(driver.poll(0), None);
    assert_eq!(driver.ring(0).used_index(), 0, "nothing is used before DRIVER_OK");
    driver.driver_ok();
    assert_eq!(driver.wait(0), (head, b"early".to_vec()));
}

#[test]
fn a_notification_through_the_eventfd_is_one() {
    let mut driver = TestDevice::live();
    driver.request(0, &[b"x"], &[1]);
    driver.memory();
    let ring = driver.ring(0);
    ring.set_descriptor(3, GuestAddress(0x20_0000), 4, 2, 0);
    ring.offer(3);
    driver.transport().notify_fd().write(1).unwrap();
    let interrupt = driver.interrupt().clone();
    let used = interrupt.wait_until("the request", || driver.ring(0).take_used());
    assert_eq!(used.id, 3);
}

#[test]
fn driver_ok_a_thousand_times_is_driver_ok_once() {
    let device = TestDevice::default();
    let sessions = device.sessions.clone();
    let mut driver = MockDriver::new(Box::new(device));
    driver.start();
    for _ in 0..1000 {
        driver.set_status(LIVE);
    }
    assert_eq!(driver.request(0, &[b"x"], &[1]), b"x");
    driver.transport().stop();
    assert_eq!(sessions.load(Ordering::SeqCst), 1);
}

#[test]
fn failed_stops_the_device_until_reset() {
    let mut driver = TestDevice::live();
    driver.submit(0, &[b"hold"], &[4]);
    driver.request(1, &[b"the device has seen both"], &[64]);
    driver.set_status(LIVE | FAILED);
    assert_eq!(driver.status(), LIVE | FAILED);
    assert!(driver.poll(0).is_some(), "given back");
    driver.submit(0, &[b"nobody listens"], &[14]);
    driver.notify(0);
    assert_eq!(driver.poll(0), None);
    assert_works_after_reset(&mut driver);
}

#[test]
fn a_reset_with_requests_in_flight_waits_until_the_device_lets_go() {
    let mut driver = TestDevice::live();
    for _ in 0..200 {
        for _ in 0..4 {
            driver.submit(0, &[b"hold"], &[4]);
        }
        driver.request(1, &[b"the device has seen them"], &[64]);
        driver.set_status(0);
        assert_eq!(driver.ring(0).used_index(), 4, "all given back before the write ended");
        assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
        driver.reset();
        driver.start();
    }
    assert_works_after_reset(&mut driver);
}

#[test]
fn a_reset_forgets_everything() {
    let mut driver = TestDevice::live();
    driver.ring(0).set_available_index(0x4000);
    driver.notify(0);
    driver.wait_for_needs_reset();
    driver.reset();
    assert_eq!(driver.status(), 0);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
    for queue in [0, 1] {
        driver.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue);
        assert_eq!(driver.read(reg::VIRTIO_MMIO_QUEUE_READY), 0);
    }
    driver.set_status(KNOWN);
    driver.set_status(AGREED);
    assert_eq!(driver.status(), KNOWN, "the old features are gone");
}

#[test]
fn interrupt_status_is_acknowledged_bit_by_bit() {
    let mut driver = TestDevice::live();
    driver.submit(0, &[b"x"], &[1]);
    let interrupt = driver.interrupt().clone();
    interrupt.wait_until("the interrupt", || (interrupt.count() > 0).then_some(()));
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, !1);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 1);
    driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, u32::MAX);
    assert_eq!(driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS), 0);
}

#[test]
fn the_hosts_failure_and_a_panic_need_a_reset() {
    for command in [&b"fail"[..], b"panic"] {
        let mut driver = TestDevice::live();
        for _ in 0..3 {
            driver.submit(0, &[command], &[4]);
            driver.wait_for_needs_reset();
            assert_eq!(driver.status(), LIVE | DEVICE_NEEDS_RESET);
            driver.submit(0, &[b"is anyone there?"], &[4]);
            driver.notify(0);
            driver.set_status(0);
            assert_eq!(driver.ring(0).used_index(), 0, "dead until reset");
            driver.reset();
            driver.start();
        }
        assert_works_after_reset(&mut driver);
    }
}

#[test]
fn stop_is_for_good_and_as_often_as_one_likes() {
    let device = TestDevice::default();
    let sessions = device.sessions.clone();
    let mut driver = MockDriver::new(Box::new(device));
    assert_stops(&driver); // Before it ever ran.
    driver.start();
    assert_stops(&driver);
    assert_stops(&driver);
    driver.reset();
    driver.start();
    driver.notify(0);
    drop(driver);
    assert_eq!(sessions.load(Ordering::SeqCst), 0);
}

#[test]
fn dropping_a_live_transport_ends_its_thread() {
    let device = TestDevice::default();
    let sessions = Arc::downgrade(&device.sessions);
    let mut driver = MockDriver::new(Box::new(device));
    driver.start();
    driver.submit(0, &[b"hold"], &[4]);
    drop(driver);
    assert_eq!(sessions.strong_count(), 0, "the device is gone, and so is what ran it");
}

/// Every offset of the window and a few beyond, in every width, in every state of the device.
#[test]
fn every_width_and_offset_survives() {
    let mut driver = TestDevice::driver();
    let prepare: [fn(&mut MockDriver); 5] = [
        |_| {},
        |driver| driver.set_status(KNOWN),
        |driver| assert!(driver.negotiate(VERSION_1)),
        |driver| driver.start(),
        |driver| {
            driver.start();
            driver.ring(0).set_available_index(0x7777);
            driver.notify(0);
            driver.wait_for_needs_reset();
        },
    ];
    for prepare in prepare {
        for value in [0x00, 0x01, 0x0f, 0xff] {
            driver.reset();
            prepare(&mut driver);
            for offset in (0..0x140).chain(0xff0..0x1010).chain([1 << 32, u64::MAX - 1, u64::MAX]) {
                for width in [0, 1, 2, 3, 4, 5, 7, 8, 16, 64] {
                    let mut data = vec![value; width];
                    driver.transport().write(offset, &data);
                    driver.transport().read(offset, &mut data);
                    if width != 4 && offset < 0x100 {
                        assert!(data.iter().all(|byte| *byte == 0), "{offset:#x} of {width}");
                    }
                }
            }
        }
    }
    assert_works_after_reset(&mut driver);
}

#[test]
fn registers_of_the_other_direction_and_unknown_ones_do_nothing() {
    let driver = TestDevice::driver();
    for register in [0x14, 0x20, 0x24, 0x30, 0x38, 0x50, 0x64, 0x80, 0xa4, 0xac, 0xc0, 0xf8] {
        assert_eq!(driver.read(register), 0, "{register:#x}");
    }
    for register in [0, 4, 8, 0xc, 0x10, 0x34, 0x60, 0xb0, 0xfc] {
        driver.write(register, 0xdead_beef);
    }
    assert_eq!(driver.read(0), 0x7472_6976);
    assert_eq!(driver.offered(), OFFERED);
}

#[test]
fn the_configuration_space_is_read_in_any_piece_and_not_written() {
    let driver = TestDevice::driver();
    let read = |offset: u64, width| {
        let mut data = vec![0xaa; width];
        driver.transport().read(0x100 + offset, &mut data);
        data
    };
    for offset in 0..10 {
        for width in 0..20 {
            driver.transport().write(0x100 + offset, &vec![0x55; width]);
        }
    }
    assert_eq!(read(0, 8), [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(read(3, 2), [4, 5]);
    assert_eq!(read(6, 4), [7, 8, 0, 0], "zeros beyond the end");
    assert_eq!(read(8, 1), [0]);
    assert_eq!(read(0xeff, 1), [0]);
}

/// Tells the driver of a new configuration whenever it is notified.
struct Changing(Arc<ConfigBytes>);

impl VirtioDevice for Changing {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[]
    }
    fn config(&self) -> Arc<dyn ConfigSpace> {
        self.0.clone()
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        while session.wait(&[], None)? {
            self.0.update(|bytes| bytes[0] += 1);
            session.config_changed()?;
        }
        Ok(())
    }
}

#[test]
fn a_change_of_configuration_interrupts_and_counts() {
    let mut driver = MockDriver::new(Box::new(Changing(Arc::new(ConfigBytes::new([0])))));
    driver.start();
    for round in 1..=3 {
        let generation = driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION);
        driver.notify(0);
        let status = || driver.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        driver.interrupt().wait_until("a new configuration", || (status() & 2 != 0).then_some(()));
        driver.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, 2);
        let mut byte = [0];
        driver.transport().read(0x100, &mut byte);
        assert_eq!(byte, [round]);
        assert_ne!(driver.read(reg::VIRTIO_MMIO_CONFIG_GENERATION), generation);
    }
    assert_eq!(driver.status(), LIVE);
}

struct Sizes(&'static [u16]);

impl VirtioDevice for Sizes {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        self.0
    }
    fn run(&mut self, _: &mut Session) -> Result<(), DeviceError> {
        Ok(())
    }
}

#[test]
fn a_device_that_offers_a_bad_queue_size_is_refused() {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    for sizes in [&[8, 0][..], &[8, 3], &[8, 2048], &[8, 0xffff]] {
        let interrupt = Box::new(MockInterrupt::default());
        let error = MmioTransport::new(Box::new(Sizes(sizes)), memory.clone(), interrupt);
        let error = error.unwrap_err().into_inner().unwrap().downcast::<QueueSizeError>().unwrap();
        assert_eq!((error.queue, error.size), (1, sizes[1]));
    }
}

/// Tells the driver of a new configuration whenever its file descriptor is readable or its timeout is
/// over, and hands out its waker.
struct Listening {
    event: EventFd,
    timeout: Option<Duration>,
    waker: Arc<Mutex<Option<Waker>>>,
}

impl VirtioDevice for Listening {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[]
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        *self.waker.lock().unwrap() = Some(session.waker());
        session.config_changed()?;
        // SAFETY: the descriptor is open for as long as `self` is borrowed.
        let event = unsafe { BorrowedFd::borrow_raw(self.event.as_raw_fd()) };
        while session.wait(&[event], self.timeout)? {
            let _ = self.event.read();
            session.config_changed()?;
        }
        Ok(())
    }
}

#[test]
fn a_device_is_woken_by_its_own_descriptors_by_its_waker_and_by_time() {
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let waker = Arc::new(Mutex::new(None));
    let listening = |timeout| {
        let event = event.try_clone().unwrap();
        let mut driver =
            MockDriver::new(Box::new(Listening { event, timeout, waker: waker.clone() }));
        driver.start();
        driver
    };
    let raised = |driver: &MockDriver, times| {
        let interrupt = driver.interrupt();
        interrupt.wait_until("the device", || (interrupt.count() >= times).then_some(()));
    };
    let mut driver = listening(None);
    raised(&driver, 1);
    event.write(1).unwrap();
    raised(&driver, 2);
    let old = waker.lock().unwrap().take().unwrap();
    old.wake();
    raised(&driver, 3);
    driver.reset();
    driver.start();
    raised(&driver, 4);
    old.wake(); // A waker of an earlier session still serves.
    raised(&driver, 5);
    drop(driver);
    old.wake(); // And harms nothing when the device is gone.

    let driver = listening(Some(Duration::from_millis(1)));
    raised(&driver, 5);
    assert_stops(&driver);
}

#[test]
fn a_waker_keeps_nothing_of_the_device_open() {
    /// Lives as long as the transport holds it.
    struct Line {
        _held: Arc<()>,
    }
    impl Interrupt for Line {
        fn trigger(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let (held, waker) = (Arc::new(()), Arc::new(Mutex::new(None)));
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let device = Listening { event, timeout: None, waker: waker.clone() };
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
    let line = Box::new(Line { _held: held.clone() });
    let transport = MmioTransport::new(Box::new(device), memory, line).unwrap();
    for (register, value) in [
        (reg::VIRTIO_MMIO_STATUS, ACKNOWLEDGE),
        (reg::VIRTIO_MMIO_STATUS, KNOWN),
        (reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, 1),
        (reg::VIRTIO_MMIO_DRIVER_FEATURES, 1),
        (reg::VIRTIO_MMIO_STATUS, AGREED),
        (reg::VIRTIO_MMIO_STATUS, LIVE),
    ] {
        transport.write(register.into(), &value.to_le_bytes());
    }
    let begin = Instant::now();
    let waker = loop {
        if let Some(waker) = waker.lock().unwrap().take() {
            break waker;
        }
        assert!(begin.elapsed() < PATIENCE, "the device does not start");
        std::thread::yield_now();
    };
    assert_eq!(Arc::strong_count(&held), 2);
    drop(transport);
    assert_eq!(Arc::strong_count(&held), 1, "the waker keeps the interrupt");
    waker.wake();
}

/// Gives its queues away, to a thread of its own for example, and waits.
struct Giving(Sender<Vec<Queue>>);

impl VirtioDevice for Giving {
    fn device_type(&self) -> u32 {
        42
    }
    fn queue_sizes(&self) -> &[u16] {
        &[SIZE]
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.0.send(session.take_queues()).unwrap();
        while session.wait(&[], None)? {}
        Ok(())
    }
}

#[test]
fn a_queue_of_an_earlier_session_stays_dead() {
    let (give, given) = channel();
    let mut driver = MockDriver::new(Box::new(Giving(give)));
    let take = || given.recv_timeout(PATIENCE).unwrap().remove(0);
    driver.start();
    let mut old = take();
    driver.submit(0, &[b"first"], &[]);
    assert!(old.pop().unwrap().is_some());
    driver.reset();
    driver.start();
    let mut new = take();
    let head = driver.submit(0, &[b"second"], &[]);
    driver.submit(0, &[b"third"], &[]);
    assert!(old.pop().unwrap().is_none(), "taken by a session that is over");
    assert!(!old.enable_notifications().unwrap());
    let chain = new.pop().unwrap().unwrap();
    new.push(chain, 0).unwrap();
    assert_eq!(driver.poll(0), Some((head, vec![])));
}
