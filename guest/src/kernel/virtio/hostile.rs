//! `test=hostile`: what no honest driver does. Afterwards the device must work again.

use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::SeqCst;

use super::blk::{DISK, Disk, HEADER_AT, Kind, Request, SECTOR};
use super::content::Random;
use super::dma::{Arena, Memory};
use super::mmio::{
    CONFIGURATION, DEVICE_ID, DRIVER_OK, Device, LIVE, MILLISECONDS, QUEUE_NOTIFY, STATUS,
};
use super::queue::{MAX_SIZE, Queue};
use super::verify::{Job, MAX_SECTORS};
use crate::bootinfo::BootInfo;
use crate::clock::Deadline;
use crate::cmdline::Cmdline;
use crate::exit_code::{
    BAD_COMMAND_LINE, VCPUS_WORK, VIRTIO_AFTER_RESET, VIRTIO_REGISTER, VIRTIO_TOLERANT,
};
use crate::{TestResult, absent, smp, uart};

const DEFAULT_TIMES: u64 = 1000;
const DEFAULT_REQUESTS: u64 = 200;
const NOTIFICATIONS: u64 = 20_000;

/// Set to end what the other CPU does, and set by it at its end.
static ENOUGH: AtomicBool = AtomicBool::new(false);
static ENDED: AtomicBool = AtomicBool::new(false);

/// What the other CPU works on.
static mut TARGET: Option<Target> = None;

#[derive(Clone, Copy)]
struct Target {
    device: Device,
    /// Descriptor table, available ring, and the memory of a slot.
    memory: [Memory; 3],
}

/// Does what `case=` says, `times=` times where that has a meaning.
pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let times = cmdline.number(b"times")?.unwrap_or(DEFAULT_TIMES);
    let requests = cmdline.number(b"requests")?.unwrap_or(DEFAULT_REQUESTS);
    let mut arena = Arena::new(boot)?;
    let mut disk = Disk::open(cmdline, &mut arena, MAX_SECTORS * SECTOR)?;
    let mut job = Job::new(cmdline, &mut arena, &disk)?;
    match cmdline.value(b"case").unwrap_or(b"") {
        b"reset" => reset(&mut disk, times),
        b"driver-ok" => driver_ok(&mut disk, times),
        b"registers" => registers(&mut disk),
        b"notify" => notify(&mut disk, &mut job, requests),
        b"break" => break_rules(&mut disk, times),
        b"flip" => flip(&mut disk, times),
        _ => Err(BAD_COMMAND_LINE),
    }?;
    disk.start()?;
    job.forget();
    job.run(&mut disk, requests)?;
    uart::text(b"works afterwards\n");
    Ok(())
}

/// Resets with requests in flight. After a reset no memory may change.
fn reset(disk: &mut Disk, times: u64) -> TestResult {
    let mut random = Random::new(1);
    for _ in 0..times {
        disk.start()?;
        submit_all(disk, &mut random);
        disk.kick();
        // At any moment: before the device has seen the requests, in their midst, after them.
        let moment = 1 << random.below(16);
        for _ in 0..random.below(moment) {
            core::hint::spin_loop();
        }
        disk.device.reset()?;
        if memory_sum(disk) != memory_sum(disk) {
            return Err(VIRTIO_AFTER_RESET);
        }
    }
    Ok(())
}

/// `DRIVER_OK` again and again, without and with a reset in between.
fn driver_ok(disk: &mut Disk, times: u64) -> TestResult {
    disk.start()?;
    for _ in 0..times {
        disk.device.go()?;
    }
    disk.request(Kind::Read, 0, 1)?;
    for _ in 0..times {
        disk.start()?;
        disk.device.go()?;
    }
    Ok(())
}

/// Accesses of every width at every offset: of a device that was reset, of one that is all but live,
/// and of a live one. What such writes undo is done again.
fn registers(disk: &mut Disk) -> TestResult {
    let window = disk.device.window;
    let dense = 0..CONFIGURATION + 0x80;
    let sparse = (dense.end..window.length() - 8).step_by(61);
    for status in [0, LIVE & !DRIVER_OK, LIVE] {
        for offset in dense.clone().chain(sparse.clone()) {
            if status != 0 && disk.device.read(STATUS) != status {
                disk.prepare()?;
                disk.device.write(STATUS, status);
            }
            for value in [0, u64::MAX] {
                let at = window.part(offset, 8).address() as *mut u8;
                // SAFETY: in the window; a device touches no memory but by its rings, and the rings that
                // these values make are outside all memory.
                unsafe { absent::touch(at, value) };
            }
        }
        if disk.device.read(DEVICE_ID) != DISK {
            return Err(VIRTIO_REGISTER);
        }
    }
    Ok(())
}

/// Notifications before `DRIVER_OK`, and then from the other CPU as well while requests are in flight.
fn notify(disk: &mut Disk, job: &mut Job, requests: u64) -> TestResult {
    disk.device.reset()?;
    storm(&disk.device, NOTIFICATIONS);
    disk.prepare()?;
    storm(&disk.device, NOTIFICATIONS);
    disk.device.go()?;
    start_other(disk, |target, _| storm(&target.device, 100))?;
    let result = job.run(disk, requests);
    stop_other()?;
    result
}

fn storm(device: &Device, count: u64) {
    for value in 0..count {
        // Also of queues that do not exist.
        device.write(QUEUE_NOTIFY, value as u32 % 7 * 0x2001);
    }
}

/// Chains that begin beyond the table: the device must ask for a reset, each time.
fn break_rules(disk: &mut Disk, times: u64) -> TestResult {
    for number in 0..times {
        disk.start()?;
        let device = disk.device;
        if let Some(queue) = &mut disk.queues[0] {
            queue.offer(queue.size() as u16 + number as u16 % 0x1000);
            queue.kick(&device);
        }
        if !Deadline::after(MILLISECONDS).wait_until(|| device.needs_reset()) {
            return Err(VIRTIO_TOLERANT);
        }
        // Nothing of this helps.
        device.write(STATUS, LIVE);
        storm(&device, 3);
        if !device.needs_reset() {
            return Err(VIRTIO_TOLERANT);
        }
    }
    Ok(())
}

/// The other CPU changes descriptors, rings and request headers while the device uses them.
fn flip(disk: &mut Disk, times: u64) -> TestResult {
    let mut random = Random::new(2);
    let mut resets = 0;
    disk.start()?;
    start_other(disk, scramble)?;
    for _ in 0..times {
        submit_all(disk, &mut random);
        disk.kick();
        let ended = || disk.queues.iter().flatten().any(Queue::has_used);
        Deadline::after(1).wait_until(|| ended() || disk.device.needs_reset());
        resets += u64::from(disk.device.needs_reset());
        // What came back has no meaning, and the slots may be in use; so all begins anew. The device
        // may want the next reset as soon as it is live.
        disk.prepare()?;
        disk.device.write(STATUS, LIVE);
    }
    stop_other()?;
    uart::key_value(b"needed_resets", resets);
    Ok(())
}

fn scramble(target: &Target, random: &mut Random) {
    let [table, available, slot] = target.memory;
    let descriptor = table.part(16 * random.below(table.length() / 16), 16);
    match random.below(8) {
        0 => descriptor.write(0, address(slot, random)),
        1 => descriptor.write(8, length(random)),
        // NEXT, WRITE, INDIRECT, and bits without a meaning.
        2 => descriptor.write(12, random.below(16) as u16),
        3 => descriptor.write(14, random.below(2 * MAX_SIZE) as u16),
        4 => available.write(2, random.next() as u16),
        5 => available.write(4 + 2 * random.below(16), random.below(2 * MAX_SIZE) as u16),
        6 => slot.write(HEADER_AT + 8 * random.below(2), random.next() >> random.below(64)),
        _ => descriptor.write(12, 0u16),
    }
}

/// In the slot, behind all memory, among the devices, or about to wrap; nowhere before the slot, where
/// the device would overwrite us.
fn address(slot: Memory, random: &mut Random) -> u64 {
    match random.below(6) {
        0 => 0xd000_0000,
        1 => u64::MAX - random.below(0x2000),
        2 => 1 << 40,
        3 => (3 << 30) - 1,
        _ => slot.address() + random.below(slot.length()),
    }
}

fn length(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => 0,
        1 => u32::MAX - random.below(0x1000) as u32,
        _ => random.below(0x10000) as u32,
    }
}

/// A read or a write in every slot.
fn submit_all(disk: &mut Disk, random: &mut Random) {
    let capacity = disk.capacity();
    for slot in 0..disk.depth {
        let kind = if random.below(2) == 0 { Kind::Read } else { Kind::Write };
        let sectors = 1 + random.below(MAX_SECTORS.min(capacity));
        let sector = random.below(capacity - sectors + 1);
        disk.submit(slot, Request { kind, sector, sectors }, Some(random));
    }
}

/// A sum over all that the device may write to.
fn memory_sum(disk: &Disk) -> u64 {
    let slots = (0..disk.depth).map(|slot| disk.slot_memory(slot));
    let rings = disk.queues.iter().flatten().map(|queue| queue.parts()[2]);
    let memory = slots.chain(rings);
    memory.fold(0, |sum, memory| {
        let words = (0..memory.length() / 8).map(|word| memory.read::<u64>(word * 8));
        words.fold(sum, |sum, word| sum.wrapping_mul(31).wrapping_add(word))
    })
}

/// Has the other CPU do `job` again and again.
fn start_other(disk: &Disk, job: fn(&Target, &mut Random)) -> TestResult {
    static mut JOB: Option<fn(&Target, &mut Random)> = None;
    let Some(queue) = &disk.queues[0] else { return Err(BAD_COMMAND_LINE) };
    let [table, available, _] = queue.parts();
    let memory = [table, available, disk.slot_memory(0)];
    // SAFETY: the other CPU does not run yet.
    unsafe {
        TARGET = Some(Target { device: disk.device, memory });
        JOB = Some(job);
    }
    smp::start(2, |_| {
        // SAFETY: set before this CPU was started, and not changed since.
        let (target, job) = unsafe { (TARGET, JOB) };
        let mut random = Random::new(3);
        while let (Some(target), Some(job), false) = (&target, job, ENOUGH.load(SeqCst)) {
            job(target, &mut random);
        }
        ENDED.store(true, SeqCst);
    })
}

fn stop_other() -> TestResult {
    ENOUGH.store(true, SeqCst);
    let ended = || ENDED.load(SeqCst);
    if Deadline::after(MILLISECONDS).wait_until(ended) { Ok(()) } else { Err(VCPUS_WORK) }
}
