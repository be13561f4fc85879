//! Requests a second through the path of a disk without a virtual machine: a driver in memory, the
//! transport, the queue, the disk's thread and its engine, on a file in `--dir` (default `/dev/shm`).
//!
//! ```text
//! block_path [--dir=PATH] [--direct] [--seconds=S]
//! ```
//! For each engine, depth, size and direction one line: requests a second, MB a second, and how many
//! notifications and interrupts each request took.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use sparkler_devices::virtio::block::{Block, Disk, EngineKind};
use sparkler_devices::virtio::mock::MockDriver;
use vm_memory::{Bytes, GuestAddress};

const DISK: u64 = 256 << 20;
const HEADERS: u64 = 0x20_0000;
const DATA: u64 = 0x50_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

struct Job {
    engine: EngineKind,
    write: bool,
    size: u32,
    depth: u16,
    direct: bool,
    time: Duration,
}

struct Figures {
    requests: u64,
    notifications: u64,
    interrupts: u64,
    seconds: f64,
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut dir, mut direct, mut seconds) = (PathBuf::from("/dev/shm"), false, 2.0);
    for argument in std::env::args().skip(1) {
        match argument.split_once('=').unwrap_or((&argument, "")) {
            ("--dir", path) => dir = path.into(),
            ("--direct", _) => direct = true,
            ("--seconds", text) => seconds = text.parse()?,
            (flag, _) => return Err(format!("no argument {flag}").into()),
        }
    }
    let image = tempfile::NamedTempFile::new_in(&dir)?;
    fill(image.path())?;
    println!("engine    size  depth  what    requests/s    MB/s  notifications  interrupts");
    for engine in [EngineKind::Sync, EngineKind::IoUring] {
        for (size, depth) in [(4096, 1), (4096, 32), (131_072, 1), (131_072, 32)] {
            for write in [false, true] {
                let time = Duration::from_secs_f64(seconds);
                let job = Job { engine, write, size, depth, direct, time };
                report(&job, &run(&job, image.path())?);
            }
        }
    }
    Ok(())
}

fn fill(path: &Path) -> std::io::Result<()> {
    std::fs::write(path, vec![0x5a; usize::try_from(DISK).unwrap_or(0)])
}

fn report(job: &Job, figures: &Figures) {
    let requests = figures.requests as f64;
    let rate = requests / figures.seconds;
    println!(
        "{:<8} {:>5}  {:>5}  {:<5}  {rate:>11.0} {:>7.0}  {:>13.2}  {:>10.2}",
        format!("{:?}", job.engine),
        job.size,
        job.depth,
        if job.write { "write" } else { "read" },
        rate * f64::from(job.size) / 1e6,
        figures.notifications as f64 / requests,
        figures.interrupts as f64 / requests,
    );
}

fn run(job: &Job, path: &Path) -> Result<Figures, Box<dyn Error>> {
    let mut disk = Disk::open(path)?.engine(job.engine)?;
    if job.direct {
        disk = disk.direct()?;
    }
    let mut driver = MockDriver::new(Box::new(Block::new(disk)));
    driver.start();
    let interrupt = driver.interrupt().clone();
    for slot in 0..job.depth {
        prepare(&mut driver, job, slot)?;
    }
    let (mut random, mut notifications, mut requests) = (1u64, 0, 0);
    let before = interrupt.count();
    let start = Instant::now();
    let mut free: Vec<u16> = (0..job.depth).collect();
    while start.elapsed() < job.time {
        for slot in free.drain(..) {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let sector = (random >> 33) % (DISK / u64::from(job.size)) * u64::from(job.size) / 512;
            let field = GuestAddress(HEADERS + u64::from(slot) * 64 + 8);
            driver.memory().write_obj(sector.to_le(), field)?;
            driver.ring(0).offer(slot * 3);
        }
        if driver.ring(0).wants_notification() {
            notifications += 1;
            driver.notify(0);
        }
        let first = interrupt.wait_until("a request", || driver.ring(0).take_used());
        free.push(u16::try_from(first.id)? / 3);
        while let Some(used) = driver.ring(0).take_used() {
            free.push(u16::try_from(used.id)? / 3);
        }
        requests += u64::try_from(free.len())?;
    }
    let seconds = start.elapsed().as_secs_f64();
    let interrupts = interrupt.count() - before;
    Ok(Figures { requests, notifications, interrupts, seconds })
}

/// The three descriptors of a slot: header, data, status.
fn prepare(driver: &mut MockDriver, job: &Job, slot: u16) -> Result<(), Box<dyn Error>> {
    let header = GuestAddress(HEADERS + u64::from(slot) * 64);
    let status = GuestAddress(header.0 + 32);
    let data = GuestAddress(DATA + u64::from(slot) * u64::from(job.size));
    driver.memory().write_obj(u32::from(job.write).to_le(), header)?;
    let ring = driver.ring(0);
    let first = slot * 3;
    ring.set_descriptor(first, header, 16, NEXT, first + 1);
    let direction = if job.write { 0 } else { WRITE };
    ring.set_descriptor(first + 1, data, job.size, NEXT | direction, first + 2);
    ring.set_descriptor(first + 2, status, 1, WRITE, 0);
    Ok(())
}
