//! What a hostile driver does to a live device. Each scenario is a test of its own, and all of them
//! together are repeated to see that nothing grows.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use sparkler_devices::virtio::features::VERSION_1;
use sparkler_devices::virtio::mock::{HOLE, MockDriver, SEAM};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{LARGE, SIZE};

// Flags of a descriptor (virtio 1.2, 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
/// Somewhere in RAM.
pub const RAM: GuestAddress = GuestAddress(0x20_0000);

/// Calls `$with!` with the names of all scenarios after which the device needs a reset.
#[macro_export]
macro_rules! for_each_scenario {
    ($with:ident) => {
        $with! {
            available_index_jumps, head_beyond_the_ring, descriptors_loop, next_beyond_the_ring,
            nested_indirect, indirect_with_next, indirect_length_odd, indirect_length_zero,
            indirect_with_65_535_entries, indirect_loop, indirect_outside_ram,
            indirect_not_negotiated, buffer_outside_ram, buffer_wraps, buffer_in_the_hole,
            buffer_straddles_the_end_of_ram, overlapping_buffers_claim_4_gib,
            readable_after_writable, same_head_twice_in_flight,
        }
    };
}

/// Makes the chain at `head` of queue 0 available, and tells the device.
fn offer(driver: &mut MockDriver, head: u16) {
    driver.ring(0).offer(head);
    driver.notify(0);
}

pub fn available_index_jumps(driver: &mut MockDriver) {
    driver.ring(0).set_available_index(SIZE + 1);
    driver.notify(0);
}

pub fn head_beyond_the_ring(driver: &mut MockDriver) {
    offer(driver, SIZE);
}

pub fn descriptors_loop(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 8, NEXT, 1);
    ring.set_descriptor(1, RAM, 8, NEXT, 0);
    offer(driver, 0);
}

pub fn next_beyond_the_ring(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, RAM, 8, NEXT, SIZE);
    offer(driver, 0);
}

pub fn nested_indirect(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 32, INDIRECT, 0);
    ring.set_descriptor_at(RAM, 0, RAM, 8, NEXT, 1);
    ring.set_descriptor_at(RAM, 1, RAM, 32, INDIRECT, 0);
    offer(driver, 0);
}

pub fn indirect_with_next(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 16, INDIRECT | NEXT, 1);
    ring.set_descriptor(1, RAM, 8, 0, 0);
    offer(driver, 0);
}

pub fn indirect_length_odd(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, RAM, 17, INDIRECT, 0);
    offer(driver, 0);
}

pub fn indirect_length_zero(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, RAM, 0, INDIRECT, 0);
    offer(driver, 0);
}

pub fn indirect_with_65_535_entries(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 65_535 * 16, INDIRECT, 0);
    for index in 0..256 {
        ring.set_descriptor_at(RAM, index, RAM, 1, NEXT, index + 1);
    }
    offer(driver, 0);
}

pub fn indirect_loop(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 32, INDIRECT, 0);
    ring.set_descriptor_at(RAM, 0, RAM, 8, NEXT, 1);
    ring.set_descriptor_at(RAM, 1, RAM, 8, NEXT, 0);
    offer(driver, 0);
}

pub fn indirect_outside_ram(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, GuestAddress(u64::MAX - 15), 32, INDIRECT, 0);
    offer(driver, 0);
}

pub fn indirect_not_negotiated(driver: &mut MockDriver) {
    driver.reset();
    driver.start_with(VERSION_1);
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 16, INDIRECT, 0);
    ring.set_descriptor_at(RAM, 0, RAM, 8, 0, 0);
    offer(driver, 0);
}

pub fn buffer_outside_ram(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, GuestAddress(1 << 40), 8, 0, 0);
    offer(driver, 0);
}

pub fn buffer_wraps(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, GuestAddress(u64::MAX - 3), 8, WRITE, 0);
    offer(driver, 0);
}

pub fn buffer_in_the_hole(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, HOLE, 8, WRITE, 0);
    offer(driver, 0);
}

pub fn buffer_straddles_the_end_of_ram(driver: &mut MockDriver) {
    driver.ring(0).set_descriptor(0, HOLE.unchecked_sub(4), 8, WRITE, 0);
    offer(driver, 0);
}

/// 128 buffers of 64 MiB make 8 GiB, of a guest that has 69 MiB.
pub fn overlapping_buffers_claim_4_gib(driver: &mut MockDriver) {
    let ring = driver.ring(1);
    let len = u32::try_from(SEAM.0).unwrap();
    for index in 0..LARGE - 1 {
        ring.set_descriptor(index, GuestAddress(0), len, WRITE | NEXT, index + 1);
    }
    ring.set_descriptor(LARGE - 1, GuestAddress(0), len, WRITE, 0);
    ring.offer(0);
    driver.notify(1);
}

pub fn readable_after_writable(driver: &mut MockDriver) {
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 8, WRITE | NEXT, 1);
    ring.set_descriptor(1, RAM, 8, 0, 0);
    offer(driver, 0);
}

pub fn same_head_twice_in_flight(driver: &mut MockDriver) {
    driver.memory().write_slice(b"hold", RAM).unwrap();
    let ring = driver.ring(0);
    ring.set_descriptor(0, RAM, 4, 0, 0);
    ring.offer(0);
    offer(driver, 0);
}

/// Another vCPU flips addresses, lengths, flags and links while the device uses them, for `rounds`
/// requests. Each may end in a reset.
pub fn descriptors_flip(driver: &mut MockDriver, rounds: u32) {
    let over = AtomicBool::new(false);
    let flipper = driver.ring(0).clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            let values = [
                (RAM, 8, NEXT, 1),
                (HOLE, 8, 0, 0),
                (GuestAddress(u64::MAX), u32::MAX, WRITE, 0),
                (RAM, 16, INDIRECT, 0),
                (RAM, 4, WRITE, SIZE),
            ];
            let mut turns = values.iter().cycle().zip((0..3).cycle());
            while !over.load(Ordering::Relaxed) {
                let (&(address, len, flags, next), index) = turns.next().unwrap();
                flipper.set_descriptor(index, address, len, flags, next);
            }
        });
        for _ in 0..rounds {
            offer(driver, 0);
            if driver.needs_reset() {
                driver.reset();
                driver.start();
            }
        }
        over.store(true, Ordering::Relaxed);
    });
}
