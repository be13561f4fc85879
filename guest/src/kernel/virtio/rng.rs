//! `test=rng`: the entropy devices (virtio 1.2, 5.4).

use super::dma::{Arena, Memory};
use super::irq::Waiter;
use super::mmio::{self, Device, EVENT_IDX, INDIRECT, VERSION_1};
use super::queue::{Buffers, Queue};
use crate::bootinfo::BootInfo;
use crate::cmdline::Cmdline;
use crate::exit_code::{RNG_CONTENT, VIRTIO_MISSING, VIRTIO_RING};
use crate::{TestResult, uart};

const ENTROPY: u32 = 4;
const BYTES: u64 = 4096;

/// Takes entropy twice from each device, or from the one `rng=N`; it must be neither the same nor
/// constant. All devices stay live to the end.
pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut arena = Arena::new(boot)?;
    let only = cmdline.number(b"rng")?;
    let buffers = [arena.take(BYTES)?, arena.take(BYTES)?];
    let mut index = only.unwrap_or(0);
    let mut count = 0;
    while let Some(device) = mmio::find(cmdline, ENTROPY, index)? {
        check(cmdline, device, &mut arena, buffers)?;
        count += 1;
        index += 1;
        if only.is_some() {
            break;
        }
    }
    uart::key_value(b"rng_devices", count);
    if count == 0 { Err(VIRTIO_MISSING) } else { Ok(()) }
}

fn check(cmdline: &Cmdline, device: Device, arena: &mut Arena, buffers: [Memory; 2]) -> TestResult {
    let features = device.offered() & (EVENT_IDX | INDIRECT | VERSION_1);
    device.negotiate(features)?;
    let mut queue = Queue::new(&device, 0, arena)?;
    queue.clear(features);
    device.set_up_queue(&queue);
    device.go()?;
    let mut waiter = Waiter::new(cmdline, device)?;
    let mut queues = [Some(queue)];
    for buffer in buffers {
        buffer.fill(0);
        fill(&device, &mut queues, &mut waiter, buffer)?;
    }
    let words = |buffer: Memory| (0..BYTES).step_by(8).map(move |at| buffer.read::<u64>(at));
    let [first, second] = buffers;
    let same = words(first).zip(words(second)).filter(|(a, b)| a == b).count();
    let repeated = words(first).zip(words(first).skip(1)).filter(|(a, b)| a == b).count();
    // Of 64-bit words not even two should be equal.
    if same > 1 || repeated > 1 { Err(RNG_CONTENT) } else { Ok(()) }
}

fn fill(
    device: &Device,
    queues: &mut [Option<Queue>; 1],
    waiter: &mut Waiter,
    buffer: Memory,
) -> TestResult {
    let mut filled = 0;
    while filled < BYTES {
        let rest = buffer.part(filled, BYTES - filled);
        for queue in queues.iter_mut().flatten() {
            queue.submit(0, Buffers::one(rest, true));
            queue.kick(device);
        }
        waiter.wait(queues)?;
        let used = queues.iter_mut().flatten().next().map(Queue::take_used);
        match used.transpose()?.flatten() {
            Some((0, written)) if (1..=rest.length()).contains(&u64::from(written)) => {
                filled += u64::from(written);
            }
            _ => return Err(VIRTIO_RING),
        }
    }
    Ok(())
}
