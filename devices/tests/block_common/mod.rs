//! A driver of disks for tests: requests as bytes in buffers of its own choice.
#![allow(dead_code)] // Each test file uses its own part of it.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use sparkler_devices::virtio::block::{Block, Completion, Disk, Engine, Operation};
use sparkler_devices::virtio::mock::{MockDriver, PATIENCE};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

pub(crate) const OK: u8 = 0;
pub(crate) const IOERR: u8 = 1;
pub(crate) const UNSUPP: u8 = 2;

pub(crate) const IN: u32 = 0;
pub(crate) const OUT: u32 = 1;
pub(crate) const FLUSH: u32 = 4;
pub(crate) const GET_ID: u32 = 8;
pub(crate) const DISCARD: u32 = 11;
pub(crate) const WRITE_ZEROES: u32 = 13;

pub(crate) const F_RO: u64 = 1 << 5;
pub(crate) const F_FLUSH: u64 = 1 << 9;
pub(crate) const F_CONFIG_WCE: u64 = 1 << 11;
pub(crate) const F_MQ: u64 = 1 << 12;
pub(crate) const F_DISCARD: u64 = 1 << 13;
pub(crate) const F_WRITE_ZEROES: u64 = 1 << 14;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
/// What room for the device holds before it writes there.
pub(crate) const UNTOUCHED: u8 = 0xee;

/// A file for a test, removed when dropped.
pub(crate) struct Image {
    directory: tempfile::TempDir,
}

impl Image {
    /// Holds `content`; on the file system of the temporary directory.
    pub(crate) fn new(content: &[u8]) -> Self {
        let image = Self { directory: tempfile::tempdir().unwrap() };
        std::fs::write(image.path(), content).unwrap();
        image
    }

    pub(crate) fn of_size(bytes: u64) -> Self {
        let image = Self::new(&[]);
        image.file().set_len(bytes).unwrap();
        image
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("disk.img")
    }

    pub(crate) fn file(&self) -> File {
        File::options().read(true).write(true).open(self.path()).unwrap()
    }

    pub(crate) fn content(&self) -> Vec<u8> {
        std::fs::read(self.path()).unwrap()
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::open(self.path()).unwrap()
    }
}

/// The end of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) head: u16,
    /// The length in the used ring.
    pub(crate) used: usize,
    /// All that the device could write to, the status not among it.
    pub(crate) data: Vec<u8>,
    pub(crate) status: u8,
}

pub(crate) struct Guest {
    pub(crate) driver: MockDriver,
    in_flight: HashMap<(u16, u16), InFlight>,
}

struct InFlight {
    descriptors: Vec<u16>,
    writable: Vec<(GuestAddress, usize)>,
}

impl Guest {
    /// With every feature.
    pub(crate) fn new(disk: Disk) -> Self {
        let mut guest = Self::unstarted(disk);
        guest.driver.start();
        guest
    }

    pub(crate) fn with_features(disk: Disk, features: u64) -> Self {
        let mut guest = Self::unstarted(disk);
        guest.driver.start_with(features);
        guest
    }

    pub(crate) fn unstarted(disk: Disk) -> Self {
        let driver = MockDriver::new(Box::new(Block::new(disk)));
        Self { driver, in_flight: HashMap::new() }
    }

    /// Resets the device, and so forgets all requests; then starts it again.
    pub(crate) fn restart(&mut self) {
        self.driver.reset();
        self.in_flight.clear();
        self.driver.start();
    }

    /// Offers a request made of these buffers without notifying: its head.
    pub(crate) fn offer(&mut self, queue: u16, readable: &[&[u8]], writable: &[usize]) -> u16 {
        let mut buffers = Vec::new();
        for bytes in readable {
            let address = self.driver.buffer(bytes.len());
            self.driver.memory().write_slice(bytes, address).unwrap();
            buffers.push((address, bytes.len(), false));
        }
        for &len in writable {
            let address = self.driver.buffer(len);
            self.driver.memory().write_slice(&vec![UNTOUCHED; len], address).unwrap();
            buffers.push((address, len, true));
        }
        self.offer_at(queue, &buffers)
    }

    /// Offers a request of buffers (address, length, for the device to write) without notifying.
    pub(crate) fn offer_at(&mut self, queue: u16, buffers: &[(GuestAddress, usize, bool)]) -> u16 {
        let ring = self.driver.ring(queue);
        let descriptors: Vec<u16> = buffers.iter().map(|_| ring.take_descriptor()).collect();
        for (position, &(address, len, writable)) in buffers.iter().enumerate() {
            let next = descriptors.get(position + 1).copied();
            let flags = if writable { WRITE } else { 0 } | next.map_or(0, |_| NEXT);
            let len = u32::try_from(len).unwrap();
            ring.set_descriptor(descriptors[position], address, len, flags, next.unwrap_or(0));
        }
        let head = descriptors[0];
        ring.offer(head);
        let writable = buffers.iter().filter(|buffer| buffer.2);
        let writable = writable.map(|&(address, len, _)| (address, len)).collect();
        self.in_flight.insert((queue, head), InFlight { descriptors, writable });
        head
    }

    /// Notifies the device if it asked for that. Whether it did.
    pub(crate) fn kick(&mut self, queue: u16) -> bool {
        let kick = self.driver.ring(queue).wants_notification();
        if kick {
            self.driver.notify(queue);
        }
        kick
    }

    /// A request that has ended, if there is one.
    pub(crate) fn poll(&mut self, queue: u16) -> Option<Answer> {
        let used = self.driver.ring(queue).take_used()?;
        let head = u16::try_from(used.id).unwrap();
        let request = self.in_flight.remove(&(queue, head)).expect("used twice, or never offered");
        for &index in &request.descriptors {
            self.driver.ring(queue).give_descriptor(index);
        }
        let mut data = Vec::new();
        for (address, len) in request.writable {
            let start = data.len();
            data.resize(start + len, 0);
            self.driver.memory().read_slice(&mut data[start..], address).unwrap();
        }
        let status = data.pop().unwrap();
        let used = usize::try_from(used.len).unwrap();
        Some(Answer { head, used, data, status })
    }

    pub(crate) fn wait(&mut self, queue: u16) -> Answer {
        let interrupt = self.driver.interrupt().clone();
        interrupt.wait_until("a request to end", || self.poll(queue))
    }

    /// One request, alone, from beginning to end.
    pub(crate) fn request(&mut self, readable: &[&[u8]], writable: &[usize]) -> Answer {
        let head = self.offer(0, readable, writable);
        self.kick(0);
        let answer = self.wait(0);
        assert_eq!(answer.head, head);
        answer
    }

    pub(crate) fn read(&mut self, sector: u64, bytes: usize) -> Answer {
        self.request(&[&header(IN, sector)], &[bytes, 1])
    }

    pub(crate) fn write(&mut self, sector: u64, data: &[u8]) -> u8 {
        let answer = self.request(&[&header(OUT, sector), data], &[1]);
        assert_eq!((answer.data.len(), answer.used), (0, 1));
        answer.status
    }

    pub(crate) fn flush(&mut self) -> u8 {
        self.request(&[&header(FLUSH, 0)], &[1]).status
    }

    /// Ranges are (sector, sectors, flags).
    pub(crate) fn ranges(&mut self, kind: u32, ranges: &[(u64, u32, u32)]) -> u8 {
        let bytes: Vec<u8> = ranges.iter().flat_map(range).collect();
        self.request(&[&header(kind, 0), &bytes], &[1]).status
    }

    /// Reads `N` bytes of the configuration space.
    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        use sparkler_devices::BusDevice;
        let mut bytes = [0; N];
        self.driver.transport().read(0x100 + offset, &mut bytes);
        bytes
    }

    pub(crate) fn set_config(&self, offset: u64, bytes: &[u8]) {
        use sparkler_devices::BusDevice;
        self.driver.transport().write(0x100 + offset, bytes);
    }

    /// Capacity in sectors, read as Linux does: again if the generation changes meanwhile.
    pub(crate) fn capacity(&self) -> u64 {
        loop {
            let before = self.driver.read(0xfc);
            let low = u32::from_le_bytes(self.config(0));
            let high = u32::from_le_bytes(self.config(4));
            if self.driver.read(0xfc) == before {
                return u64::from(high) << 32 | u64::from(low);
            }
        }
    }
}

pub(crate) fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

pub(crate) fn range(&(sector, sectors, flags): &(u64, u32, u32)) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

/// Random numbers without a crate: xorshift64*, the same for the same seed.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 11
    }

    /// Below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Storage in memory, whose operations a test can watch, hold back and let fail.
#[derive(Clone, Default)]
pub(crate) struct Storage(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    bytes: Vec<u8>,
    /// What was begun, as text: "write 512 1024", "sync".
    begun: Vec<String>,
    /// While set, operations of these kinds do not end.
    held: Vec<&'static str>,
    waiting: Vec<(String, Completion)>,
    ended: VecDeque<Completion>,
    fault: Option<Fault>,
    most: Option<usize>,
    ready: Option<EventFd>,
}

type Fault = Box<dyn FnMut(&str) -> Option<io::Error> + Send>;

impl Storage {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let ready = EventFd::new(vmm_sys_util::eventfd::EFD_NONBLOCK).unwrap();
        let inner = Inner { bytes, ready: Some(ready), ..Inner::default() };
        Self(Arc::new(Mutex::new(inner)))
    }

    pub(crate) fn disk(&self) -> Disk {
        let size = self.inner().bytes.len() as u64;
        Disk::with_engine(size, self.engine()).unwrap()
    }

    /// What makes its engines.
    pub(crate) fn engine(&self) -> impl FnMut() -> io::Result<Box<dyn Engine>> + Send + use<> {
        let storage = self.clone();
        move || {
            let ready = storage.inner().ready.as_ref().unwrap().try_clone().unwrap();
            Ok(Box::new(StorageEngine { storage: storage.clone(), ready }))
        }
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.inner().bytes.clone()
    }

    /// What was begun since the last call.
    pub(crate) fn begun(&self) -> Vec<String> {
        std::mem::take(&mut self.inner().begun)
    }

    /// Operations of this kind ("read", "write", "sync" …) take place but do not end from now on.
    pub(crate) fn hold(&self, kind: &'static str) {
        self.inner().held.push(kind);
    }

    /// Waits until so many operations are held back.
    pub(crate) fn wait_for_held(&self, count: usize) {
        let start = Instant::now();
        while self.inner().waiting.len() < count {
            assert!(start.elapsed() < PATIENCE, "{count} operations were never begun");
            std::thread::yield_now();
        }
    }

    /// Lets the operation end that was held back as number `index`.
    pub(crate) fn release(&self, index: usize) {
        let mut inner = self.inner();
        let (_, completion) = inner.waiting.remove(index);
        inner.ended.push_back(completion);
        inner.ready.as_ref().unwrap().write(1).unwrap();
    }

    /// Holds nothing back any more.
    pub(crate) fn release_all(&self) {
        let mut inner = self.inner();
        inner.held.clear();
        let all: Vec<_> = inner.waiting.drain(..).map(|waiting| waiting.1).collect();
        inner.ended.extend(all);
        inner.ready.as_ref().unwrap().write(1).unwrap();
    }

    /// From now on, `fault` says which operations fail.
    pub(crate) fn fail(&self, fault: impl FnMut(&str) -> Option<io::Error> + Send + 'static) {
        self.inner().fault = Some(Box::new(fault));
    }

    pub(crate) fn recover(&self) {
        self.inner().fault = None;
    }

    /// No operation moves more bytes than this.
    pub(crate) fn at_most(&self, bytes: usize) {
        self.inner().most = Some(bytes);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }
}

struct StorageEngine {
    storage: Storage,
    ready: EventFd,
}

impl std::fmt::Debug for StorageEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StorageEngine")
    }
}

impl Inner {
    fn part(&mut self, offset: u64, len: usize) -> &mut [u8] {
        let start = usize::try_from(offset).unwrap().min(self.bytes.len());
        let end = (start + len.min(self.most.unwrap_or(len))).min(self.bytes.len());
        &mut self.bytes[start..end]
    }

    fn carry_out(&mut self, operation: &Operation<'_>) -> usize {
        match operation {
            Operation::Read { offset, data } => {
                let mut rest = &*self.part(*offset, data.len());
                let len = rest.len();
                for slice in data.slices() {
                    let slice = slice.unwrap();
                    let (now, later) = rest.split_at(slice.len().min(rest.len()));
                    slice.copy_from(now);
                    rest = later;
                }
                len
            }
            Operation::Write { offset, data } => {
                let mut rest = self.part(*offset, data.len());
                let len = rest.len();
                for slice in data.slices() {
                    let slice = slice.unwrap();
                    let (now, later) = rest.split_at_mut(slice.len().min(rest.len()));
                    slice.copy_to(now);
                    rest = later;
                }
                len
            }
            Operation::Sync => 0,
            Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                self.part(*offset, usize::try_from(*len).unwrap()).fill(0);
                0
            }
        }
    }
}

impl Engine for StorageEngine {
    fn begin(&mut self, tag: u16, operation: Operation<'_>) {
        let mut inner = self.storage.inner();
        let text = match &operation {
            Operation::Read { offset, data } => format!("read {offset} {}", data.len()),
            Operation::Write { offset, data } => format!("write {offset} {}", data.len()),
            Operation::Sync => "sync".to_owned(),
            Operation::Discard { offset, len } => format!("discard {offset} {len}"),
            Operation::WriteZeroes { offset, len, unmap } => {
                format!("zero {offset} {len}{}", if *unmap { " unmap" } else { "" })
            }
        };
        let fault = inner.fault.as_mut().and_then(|fault| fault(&text));
        let result = fault.map_or_else(|| Ok(inner.carry_out(&operation)), Err);
        let completion = Completion { tag, result };
        inner.begun.push(text.clone());
        if inner.held.iter().any(|held| text.starts_with(held)) {
            inner.waiting.push((text, completion));
        } else {
            inner.ended.push_back(completion);
        }
    }

    fn complete(&mut self) -> Option<Completion> {
        let completion = self.storage.inner().ended.pop_front();
        if completion.is_none() {
            let _ = self.ready.read();
            return self.storage.inner().ended.pop_front();
        }
        completion
    }

    fn completion_fd(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the descriptor is open as long as `ready` is, which is borrowed.
        Some(unsafe { BorrowedFd::borrow_raw(self.ready.as_raw_fd()) })
    }

    /// As a disk that takes its time: it ends what is held back, in any case.
    fn drain(&mut self) -> io::Result<()> {
        self.storage.inner().begun.push("drain".to_owned());
        self.storage.release_all();
        Ok(())
    }
}
