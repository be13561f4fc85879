//! Storage that loses, when the power goes, whatever no flush has covered.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sparkler::virtio::block::{Completion, Data, Disk, Engine, Operation};
use sparkler::{Console, Outcome};

use crate::guest::linux;

/// Bytes of a record; the first page of the disk holds none.
const RECORD: usize = 4096;
const SIZE: usize = 2 << 20;
/// How many records the guest gets to write before the power goes.
const ENOUGH: u64 = 150;
/// How long it may take for that. Only for the case that nothing works.
const PATIENCE: Duration = Duration::from_secs(300);

#[test]
#[ignore = "needs the lab"]
fn what_a_completed_flush_covered_survives_a_loss_of_power() {
    let storage = Arc::new(Mutex::new(Storage { cache: vec![0; SIZE], ..Storage::default() }));
    let engines = Arc::clone(&storage);
    let engine = move || -> io::Result<Box<dyn Engine>> {
        Ok(Box::new(Volatile { storage: Arc::clone(&engines), done: VecDeque::new() }))
    };
    let disk = Disk::with_engine(SIZE as u64, engine).unwrap();
    let (sender, announced) = channel();
    let console = Console::output(Announced { line: Vec::new(), sender });
    let machine = linux("records=/dev/vda").disk(disk).console(console);
    let running = machine.build().unwrap().start().unwrap();

    // Some numbers may be announced while the machine ends: they were promised before it did.
    let mut promised = 0;
    while promised < ENOUGH {
        promised = announced.recv_timeout(PATIENCE).unwrap();
    }
    running.handle().stop();
    assert_eq!(running.wait().unwrap(), Outcome::Stopped);
    drop(running);
    let promised = announced.iter().last().unwrap_or(promised);

    let storage = storage.lock().unwrap();
    let durable: Vec<u64> =
        storage.durable.chunks_exact(RECORD).skip(1).filter_map(number_of_record).collect();
    let places = (SIZE / RECORD) as u64 - 1;
    for number in promised.saturating_sub(places - 1).max(1)..=promised {
        let newer =
            (number..).step_by((SIZE / RECORD) - 1).take_while(|it| *it <= promised + places);
        assert!(
            newer.into_iter().any(|it| durable.contains(&it)),
            "{number} of {promised} is lost"
        );
    }
    // Writes and flushes were told apart: there was something to lose at least once.
    assert!(storage.syncs > 10 && storage.dirty_syncs > 10, "{} syncs", storage.syncs);
    println!("{promised} records promised, {} flushes", storage.syncs);
}

/// The number of the record that these bytes are; nothing if they are none, or a torn one.
fn number_of_record(bytes: &[u8]) -> Option<u64> {
    let mut words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    let number = words.next()?;
    // See lab/init/src/records.rs.
    let whole = (1..).zip(words).all(|(position, word)| word == number ^ position << 48);
    (whole && number > 0).then_some(number)
}

/// A disk with a cache.
#[derive(Debug, Default)]
struct Storage {
    /// What the guest sees.
    cache: Vec<u8>,
    /// What there is after a loss of power.
    durable: Vec<u8>,
    /// A write is in the cache alone.
    dirty: bool,
    syncs: u64,
    dirty_syncs: u64,
}

#[derive(Debug)]
struct Volatile {
    storage: Arc<Mutex<Storage>>,
    done: VecDeque<Completion>,
}

impl Engine for Volatile {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let mut storage = self.storage.lock().unwrap();
        let mut length = 0;
        match operation {
            Operation::Read { offset, data } => each_slice(&data, |at, slice| {
                let from = usize::try_from(offset).unwrap() + at;
                slice.copy_from(&storage.cache[from..from + slice.len()]);
                length += slice.len();
            }),
            Operation::Write { offset, data } => each_slice(&data, |at, slice| {
                let to = usize::try_from(offset).unwrap() + at;
                slice.copy_to(&mut storage.cache[to..to + slice.len()]);
                storage.dirty = true;
                length += slice.len();
            }),
            Operation::Sync => {
                let storage = &mut *storage;
                storage.durable.clone_from(&storage.cache);
                storage.syncs += 1;
                storage.dirty_syncs += u64::from(std::mem::take(&mut storage.dirty));
            }
            Operation::Discard { .. } => {}
            Operation::WriteZeroes { .. } => panic!("nobody asks for it"),
        }
        self.done.push_back(Completion { tag, result: Ok(length) });
    }

    fn complete(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
}

fn each_slice(data: &Data<'_>, mut work: impl FnMut(usize, &vm_memory::VolatileSlice<'_>)) {
    let mut at = 0;
    for slice in data.slices() {
        let slice = slice.unwrap();
        work(at, &slice);
        at += slice.len();
    }
}

/// Sends on the numbers that the guest announces.
struct Announced {
    line: Vec<u8>,
    sender: Sender<u64>,
}

impl Write for Announced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte != b'\n' {
                self.line.push(byte);
                continue;
            }
            let line = String::from_utf8_lossy(&self.line).into_owned();
            if let Some(number) = line.trim().strip_prefix("durable: ") {
                // The test may have seen enough.
                let _ = self.sender.send(number.parse().unwrap());
            }
            self.line.clear();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
