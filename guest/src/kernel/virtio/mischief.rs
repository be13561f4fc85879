//! `test=net case=…`: what no honest driver of an interface does. Afterwards the device must work again.

use super::content::Random;
use super::dma::{Arena, Memory};
use super::frames::{LEAST, TYPE};
use super::mmio::{LIVE, MILLISECONDS, STATUS};
use super::net::{COMMANDS, HEADER, Net, TRANSMIT};
use super::queue::{Buffers, Queue};
use crate::TestResult;
use crate::clock::Deadline;
use crate::cmdline::Cmdline;
use crate::exit_code::{
    BAD_COMMAND_LINE, VIRTIO_AFTER_RESET, VIRTIO_FEATURES, VIRTIO_TIMEOUT, VIRTIO_TOLERANT,
};

const DEFAULT_TIMES: u64 = 1000;
/// The other type for local experiments: whoever receives it must not take it for a frame of the test.
const NOISE: u16 = 0x88b6;

/// Does what `case=` says, `times=` times.
pub(crate) fn run(case: &[u8], cmdline: &Cmdline, net: &mut Net, arena: &mut Arena) -> TestResult {
    let times = cmdline.number(b"times")?.unwrap_or(DEFAULT_TIMES);
    match case {
        b"reset" => reset(net, times),
        b"break" => break_rules(net, times),
        b"headers" => headers(net, times),
        b"control" => control(net, times, arena),
        _ => Err(BAD_COMMAND_LINE),
    }
}

/// Resets with frames under way in both directions. After a reset no memory may change.
fn reset(net: &mut Net, times: u64) -> TestResult {
    let mut random = Random::new(1);
    for _ in 0..times {
        net.start()?;
        net.refill();
        while let Some((slot, frame)) = net.frame()? {
            let length = LEAST + random.below(frame.length() - LEAST);
            noise(frame, &mut random);
            net.send(slot, length);
        }
        net.kick();
        // At any moment: before the device has seen them, in their midst, after them.
        let moment = 1 << random.below(16);
        for _ in 0..random.below(moment) {
            core::hint::spin_loop();
        }
        net.device.reset()?;
        if memory_sum(net) != memory_sum(net) {
            return Err(VIRTIO_AFTER_RESET);
        }
    }
    Ok(())
}

/// Chains that begin beyond the table: the device must ask for a reset, each time. It may look at the
/// other queue only when there is something to receive.
fn break_rules(net: &mut Net, times: u64) -> TestResult {
    for number in 0..times {
        net.start()?;
        let device = net.device;
        if let Some(queue) = &mut net.queues[TRANSMIT] {
            queue.offer(queue.size() as u16 + number as u16 % 0x1000);
            queue.kick(&device);
        }
        if !Deadline::after(MILLISECONDS).wait_until(|| device.needs_reset()) {
            return Err(VIRTIO_TOLERANT);
        }
        device.write(STATUS, LIVE);
    }
    Ok(())
}

/// Headers at random, in front of frames of any length, from none at all.
fn headers(net: &mut Net, times: u64) -> TestResult {
    let mut random = Random::new(2);
    net.start()?;
    for _ in 0..times {
        let Some((slot, frame)) = free_frame(net)? else { return Err(VIRTIO_TIMEOUT) };
        noise(frame, &mut random);
        let memory = net.sent_memory(slot);
        // Flags, GSO type; header length, segment size, checksum's start and offset: often not far off.
        memory.write(0, (random.below(4) | random.next() << 8) as u16);
        (2..10).step_by(2).for_each(|at| memory.write(at, random.below(0x2000) as u16));
        if random.below(4) == 0 {
            (0..HEADER).for_each(|at| memory.write(at, random.next() as u8));
        }
        let longest = if random.below(4) == 0 { HEADER + 14 } else { memory.length() };
        net.send_raw(slot, 1 + random.below(longest));
        net.kick();
    }
    Ok(())
}

/// The next slot that is free. A device that has had enough is made live again.
fn free_frame(net: &mut Net) -> Result<Option<(u64, Memory)>, u8> {
    let mut found = net.frame()?;
    let deadline = Deadline::after(MILLISECONDS);
    while found.is_none() {
        let has_used = |net: &Net| net.queues.iter().flatten().any(Queue::has_used);
        let again = || has_used(net) || net.device.needs_reset();
        if !deadline.wait_until(again) {
            return Ok(None);
        }
        if net.device.needs_reset() {
            net.start()?;
        }
        found = net.frame()?;
    }
    Ok(found)
}

/// Commands without a meaning: the device answers or asks for a reset.
fn control(net: &mut Net, times: u64, arena: &mut Arena) -> TestResult {
    const DATA: u64 = 2048;
    let mut random = Random::new(3);
    net.use_control(arena)?;
    let memory = arena.take(DATA + 64)?;
    net.start()?;
    let device = net.device;
    for _ in 0..times {
        // Class and command exist as often as not; the rest is anything.
        (0..64).for_each(|at| memory.write(at, random.next() as u8));
        memory.write(0, random.below(8) as u8);
        memory.write(1, random.below(6) as u8);
        let mut buffers = Buffers::default();
        let length = if random.below(2) == 0 { 1 + random.below(16) } else { random.below(DATA) };
        buffers.push(memory.part(0, length), false);
        // From no place for the answer to too much.
        buffers.push(memory.part(DATA, random.below(4)), true);
        if length == 0 {
            buffers.push(memory.part(DATA, 1), true);
        }
        let Some(queue) = &mut net.queues[COMMANDS] else { return Err(VIRTIO_FEATURES) };
        queue.submit(0, buffers);
        queue.kick(&device);
        let answered = || queue.has_used() || device.needs_reset();
        if !Deadline::after(MILLISECONDS).wait_until(answered) {
            return Err(VIRTIO_TIMEOUT);
        }
        if device.needs_reset() {
            net.start()?;
        } else {
            queue.take_used()?;
        }
    }
    net.queues[COMMANDS] = None;
    Ok(())
}

fn noise(frame: Memory, random: &mut Random) {
    (0..TYPE).for_each(|at| frame.write(at, if at == 0 { 2 } else { random.next() as u8 }));
    frame.write(TYPE, NOISE.to_be());
}

/// A sum over all that the device may write to.
fn memory_sum(net: &Net) -> u64 {
    net.writable().fold(0, |sum, memory| {
        let words = (0..memory.length() / 8).map(|word| memory.read::<u64>(word * 8));
        words.fold(sum, |sum, word| sum.wrapping_mul(31).wrapping_add(word))
    })
}
