//! A disk against a model of one: random requests, most of them sound, with any cut into buffers, in
//! batches, on a file that is resized and cut short meanwhile. Every status, every length in the used
//! ring, every byte that is read and the file in the end must be the model's.

#![no_main]

use std::fs::File;
use std::path::PathBuf;
use std::sync::LazyLock;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use sparkler_devices::virtio::block::{Block, Disk, DiskHandle, EngineKind};
use sparkler_devices::virtio::mock::MockDriver;
use sparkler_fuzz::{cut, prolong};
use vm_memory::{Bytes, GuestAddress};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const SECTOR: u64 = 512;
const MOST_SECTORS: u64 = 300;
const F_FLUSH: u64 = 1 << 9;
const F_CONFIG_WCE: u64 = 1 << 11;
const F_DISCARD: u64 = 1 << 13;
const F_WRITE_ZEROES: u64 = 1 << 14;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const SERIAL: &[u8; 20] = b"fuzz\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// In a tmpfs: files can have holes there, but ranges of them cannot be zeroed otherwise.
static PATH: LazyLock<PathBuf> =
    LazyLock::new(|| format!("/dev/shm/sparkler-fuzz-block-{}", std::process::id()).into());

#[derive(Arbitrary, Debug)]
struct Input {
    size: u32,
    read_only: bool,
    io_uring: bool,
    without: u8,
    steps: [Step; 6],
}

#[derive(Arbitrary, Debug)]
enum Step {
    One(Request),
    Batch([Request; 10]),
    /// The file gets another size, and the guest is told.
    Resize(u32),
    /// The file gets another size, and nobody is told.
    Cut(u32),
    WriteBack(bool),
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Request {
    kind: Kind,
    quirk: Quirk,
    /// Lengths of the first buffers.
    cuts: [u16; 3],
    room_cuts: [u16; 2],
}

#[derive(Arbitrary, Debug)]
enum Kind {
    Read { sector: Sector, len: Len },
    Write { sector: Sector, len: Len, seed: u8 },
    Flush,
    GetId { room: u8 },
    Discard(Ranges),
    WriteZeroes(Ranges),
    Other { kind: u32, len: Len },
}

#[derive(Arbitrary, Debug)]
enum Quirk {
    None,
    NoneEither,
    NoneTwice,
    ShortHeader(u8),
    NoStatus(u8),
    /// Bytes of the direction that the request does not have.
    Extra(u8),
    /// Ranges that end within a range.
    OddRanges(u8),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Sector {
    Inside(u16),
    Low(u8),
    NearEnd(u8),
    Any(u64),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Len {
    Sectors(u8),
    Few(u8),
    Bytes(u16),
}

/// So many, which differ as far as there are different ones.
#[derive(Arbitrary, Debug, Clone, Copy)]
struct Ranges {
    count: u8,
    ranges: [Range; 3],
}

#[derive(Arbitrary, Debug, Clone, Copy)]
struct Range {
    sector: Sector,
    sectors: Count,
    flags: Flags,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Flags {
    None,
    Unmap,
    NoneEither,
    Any(u32),
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Count {
    Few(u8),
    Fewer(u8),
    Any(u32),
}

/// What the disk must do.
struct Model {
    file: Vec<u8>,
    /// The size that the device knows.
    size: u64,
    read_only: bool,
    discard: bool,
    write_zeroes: bool,
}

/// A request as the device gets it, and how it must end.
#[derive(Debug)]
struct Prepared {
    readable: Vec<u8>,
    room: usize,
    status: bool,
}

#[derive(Debug)]
struct Expected {
    status: u8,
    /// What is in the room from its start on.
    filled: Vec<u8>,
}

impl Model {
    fn capacity(&self) -> u64 {
        self.size.div_ceil(SECTOR)
    }

    fn sector(&self, sector: Sector) -> u64 {
        match sector {
            Sector::Low(sector) => u64::from(sector % 16),
            Sector::Inside(sector) => u64::from(sector) % self.capacity(),
            Sector::NearEnd(back) => self.capacity().saturating_sub(u64::from(back % 4)),
            Sector::Any(sector) => sector,
        }
    }

    fn inside(&self, sector: u64, len: u64) -> bool {
        let end = u128::from(sector) * 512 + u128::from(len);
        len % SECTOR == 0 && end <= u128::from(self.capacity()) * 512
    }

    /// The bytes of a request.
    fn prepare(&self, request: &Request) -> Prepared {
        let (kind, sector, data, mut room) = match &request.kind {
            Kind::Read { sector, len } => (0, self.sector(*sector), vec![], len.bytes()),
            Kind::Write { sector, len, seed } => {
                let data = (0..len.bytes()).map(|at| (at as u8).wrapping_mul(7) ^ *seed).collect();
                (1, self.sector(*sector), data, 0)
            }
            Kind::Flush => (4, 0, vec![], 0),
            Kind::GetId { room } => (8, 0, vec![], usize::from(*room)),
            Kind::Discard(ranges) => (11, 0, self.ranges(ranges), 0),
            Kind::WriteZeroes(ranges) => (13, 0, self.ranges(ranges), 0),
            Kind::Other { kind, len } => (*kind, 3, vec![1; len.bytes()], 0),
        };
        let mut readable = vec![0; 16];
        readable[..4].copy_from_slice(&u32::to_le_bytes(kind));
        readable[8..].copy_from_slice(&sector.to_le_bytes());
        readable.extend(data);
        let mut status = true;
        match request.quirk {
            Quirk::ShortHeader(len) if len < 64 => readable.truncate(usize::from(len % 16)),
            Quirk::NoStatus(byte) if byte < 16 => (room, status) = (0, false),
            Quirk::Extra(len) if kind == 0 => readable.extend(vec![2; len.into()]),
            Quirk::Extra(len) => room += usize::from(len),
            Quirk::OddRanges(len) if kind == 11 || kind == 13 => {
                readable.extend(vec![3; usize::from(len % 16)]);
            }
            _ => {}
        }
        Prepared { readable, room, status }
    }

    fn ranges(&self, ranges: &Ranges) -> Vec<u8> {
        // Few, mostly; sometimes none, or one more than there may be.
        let count = if ranges.count < 32 { ranges.count % 18 } else { 1 + ranges.count % 3 };
        let ranges = ranges.ranges.iter().cycle().take(count.into());
        let bytes = ranges.flat_map(|range| {
            let sectors = match range.sectors {
                Count::Few(sectors) => u32::from(sectors % 32),
                Count::Fewer(sectors) => u32::from(sectors % 4),
                Count::Any(sectors) => sectors,
            };
            let flags = match range.flags {
                Flags::None | Flags::NoneEither => 0,
                Flags::Unmap => 1,
                Flags::Any(flags) => flags,
            };
            let sector = self.sector(range.sector).to_le_bytes();
            [&sector[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        });
        bytes.collect()
    }

    /// Carries out a request by its bytes alone, as the device does.
    fn carry_out(&mut self, request: &Prepared) -> Expected {
        let fail = |status| Expected { status, filled: vec![] };
        let Some((header, data)) = request.readable.split_at_checked(16) else {
            return fail(IOERR);
        };
        let kind = u32::from_le_bytes(header[..4].try_into().unwrap());
        let sector = u64::from_le_bytes(header[8..].try_into().unwrap());
        match kind {
            0 => self.read(sector, request.room),
            1 if self.read_only || !self.inside(sector, data.len() as u64) => fail(IOERR),
            1 => {
                self.write(sector * SECTOR, data);
                fail(OK)
            }
            4 => fail(OK),
            8 => Expected { status: OK, filled: SERIAL[..request.room.min(20)].to_vec() },
            11 | 13 => fail(self.change_ranges(kind == 13, data)),
            _ => fail(UNSUPP),
        }
    }

    fn read(&self, sector: u64, room: usize) -> Expected {
        if !self.inside(sector, room as u64) {
            return Expected { status: IOERR, filled: vec![] };
        }
        let start = (sector * SECTOR) as usize;
        let there = self.file.len().saturating_sub(start).min(room);
        let mut filled = self.file.get(start..start + there).unwrap_or_default().to_vec();
        let missing = room - there;
        // Only the rest of the last sector is filled up.
        let padded = (start + there) as u64 == self.size && missing < 512;
        let status = if missing == 0 || padded { OK } else { IOERR };
        if padded {
            filled.resize(room, 0);
        }
        Expected { status, filled }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let end = offset as usize + data.len();
        if data.is_empty() {
            return;
        }
        if self.file.len() < end {
            self.file.resize(end, 0);
        }
        self.file[offset as usize..end].copy_from_slice(data);
    }

    fn change_ranges(&mut self, zero: bool, data: &[u8]) -> u8 {
        let (negotiated, known) = if zero { (self.write_zeroes, 1) } else { (self.discard, 0) };
        if self.read_only {
            return IOERR;
        }
        if !negotiated {
            return UNSUPP;
        }
        if data.is_empty() || data.len() % 16 != 0 || data.len() > 256 {
            return IOERR;
        }
        let mut ranges = Vec::new();
        for range in data.chunks(16) {
            let sector = u64::from_le_bytes(range[..8].try_into().unwrap());
            let sectors = u32::from_le_bytes(range[8..12].try_into().unwrap());
            let flags = u32::from_le_bytes(range[12..].try_into().unwrap());
            if flags & !known != 0 {
                return UNSUPP;
            }
            let len = u64::from(sectors) * SECTOR;
            if sectors > 1 << 21 || !self.inside(sector, len) {
                return IOERR;
            }
            ranges.push((sector * SECTOR, len as usize, flags));
        }
        // In any order, as all do the same, but for the length of the file.
        for (offset, len, flags) in ranges {
            if zero && flags == 0 {
                self.write(offset, &vec![0; len]);
            } else {
                let start = (offset as usize).min(self.file.len());
                let end = (start + len).min(self.file.len());
                self.file[start..end].fill(0);
            }
        }
        OK
    }
}

impl Len {
    fn bytes(self) -> usize {
        match self {
            Self::Few(sectors) => usize::from(1 + sectors % 4) * 512,
            Self::Sectors(sectors) => usize::from(sectors % 48) * 512,
            Self::Bytes(bytes) => usize::from(bytes % 8192),
        }
    }
}

struct Bench {
    driver: MockDriver,
    handle: DiskHandle,
    file: File,
    model: Model,
    features: u64,
    /// Requests of a batch are carried out in the order of the batch, as the model does it.
    ordered: bool,
}

/// Where a request's room is, and how it must end.
struct Pending {
    head: u16,
    descriptors: Vec<u16>,
    room: Vec<(GuestAddress, usize)>,
    expected: Expected,
}

impl Bench {
    fn new(input: &Input) -> Self {
        let size = u64::from(input.size) % (MOST_SECTORS * SECTOR) + 1;
        let content: Vec<u8> = (0..size).map(|at| (at / 512 * 5 + at % 253) as u8).collect();
        std::fs::write(&*PATH, &content).unwrap();
        let file = File::options().read(true).write(true).open(&*PATH).unwrap();
        let disk = match input.read_only {
            true => Disk::open_read_only(&*PATH),
            false => Disk::open(&*PATH),
        };
        let kind = if input.io_uring { EngineKind::IoUring } else { EngineKind::Sync };
        let disk = disk.unwrap().serial("fuzz").unwrap().engine(kind).unwrap();
        let handle = disk.handle();
        let without = [F_FLUSH, F_CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES];
        let without = (0..4).filter(|bit| input.without >> bit & 1 != 0).map(|bit| without[bit]);
        let mut driver = MockDriver::new(Box::new(Block::new(disk)));
        let features = driver.offered() & !without.fold(0, |all, one| all | one);
        driver.start_with(features);
        let model = Model {
            file: content,
            size,
            read_only: input.read_only,
            discard: features & F_DISCARD != 0,
            write_zeroes: features & F_WRITE_ZEROES != 0,
        };
        Self { driver, handle, file, model, features, ordered: !input.io_uring }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::One(request) => self.requests(std::slice::from_ref(request)),
            Step::Batch(requests) if self.ordered => self.requests(requests),
            Step::Batch(requests) => requests.chunks(1).for_each(|one| self.requests(one)),
            Step::Resize(size) => {
                self.set_len(*size);
                if self.handle.refresh().is_ok() {
                    self.model.size = self.model.file.len() as u64;
                }
            }
            Step::Cut(size) => self.set_len(*size),
            Step::WriteBack(on) => {
                use sparkler_devices::BusDevice;
                self.driver.transport().write(0x100 + 32, &[u8::from(*on)]);
            }
            Step::Reset => self.restart(),
        }
    }

    fn set_len(&mut self, size: u32) {
        let size = u64::from(size) % (MOST_SECTORS * SECTOR);
        self.file.set_len(size).unwrap();
        self.model.file.resize(size as usize, 0);
    }

    fn restart(&mut self) {
        self.driver.reset();
        self.driver.start_with(self.features);
    }

    /// One batch: offered all together, and all ended before the next.
    fn requests(&mut self, requests: &[Request]) {
        let mut pending = Vec::new();
        let mut broken = false;
        for (slot, request) in requests.iter().enumerate() {
            let prepared = self.model.prepare(request);
            let readable = cut(prepared.readable.len(), request.cuts.map(usize::from));
            let room = cut(
                prepared.room + usize::from(prepared.status),
                request.room_cuts.map(usize::from),
            );
            if readable.is_empty() && room.is_empty() {
                continue;
            }
            let mut offered = self.offer(slot, &prepared.readable, &readable, &room);
            if room.is_empty() {
                broken = true;
                break; // The device goes no further.
            }
            offered.expected = self.model.carry_out(&prepared);
            pending.push(offered);
        }
        if self.driver.ring(0).wants_notification() {
            self.driver.notify(0);
        }
        if broken {
            self.driver.wait_for_needs_reset();
            return self.restart();
        }
        while !pending.is_empty() {
            let interrupt = self.driver.interrupt().clone();
            let used = interrupt.wait_until("a request", || self.driver.ring(0).take_used());
            let position = pending.iter().position(|one| u32::from(one.head) == used.id).unwrap();
            self.check(pending.remove(position), used.len as usize);
        }
        assert!(!self.driver.needs_reset());
    }

    fn offer(&mut self, slot: usize, bytes: &[u8], readable: &[usize], room: &[usize]) -> Pending {
        let mut address = 0x50_0000 + slot as u64 * 0x2_0000;
        let mut buffers = Vec::new();
        let (mut rest, mut places) = (bytes, Vec::new());
        for &len in readable {
            let (now, later) = rest.split_at(len);
            self.driver.memory().write_slice(now, GuestAddress(address)).unwrap();
            buffers.push((GuestAddress(address), len, 0));
            (rest, address) = (later, address + len as u64 + 5);
        }
        for &len in room {
            self.driver.memory().write_slice(&vec![0xee; len], GuestAddress(address)).unwrap();
            buffers.push((GuestAddress(address), len, WRITE));
            places.push((GuestAddress(address), len));
            address += len as u64 + 3;
        }
        let ring = self.driver.ring(0);
        let descriptors: Vec<u16> = buffers.iter().map(|_| ring.take_descriptor()).collect();
        for (position, (address, len, flags)) in buffers.into_iter().enumerate() {
            let next = descriptors.get(position + 1).copied();
            let flags = flags | next.map_or(0, |_| NEXT);
            let index = descriptors[position];
            ring.set_descriptor(index, address, len as u32, flags, next.unwrap_or(0));
        }
        ring.offer(descriptors[0]);
        let expected = Expected { status: OK, filled: vec![] };
        Pending { head: descriptors[0], descriptors, room: places, expected }
    }

    fn check(&mut self, request: Pending, used: usize) {
        for index in request.descriptors {
            self.driver.ring(0).give_descriptor(index);
        }
        let mut room = Vec::new();
        for (address, len) in request.room {
            let start = room.len();
            room.resize(start + len, 0);
            self.driver.memory().read_slice(&mut room[start..], address).unwrap();
        }
        let status = room.pop().unwrap();
        let Expected { status: expected, filled } = request.expected;
        assert_eq!(status, expected);
        assert_eq!(used, if filled.len() == room.len() { room.len() + 1 } else { filled.len() });
        let (data, rest) = room.split_at(filled.len());
        assert!(data == filled, "wrong data");
        assert!(rest.iter().all(|&byte| byte == 0xee), "more written than used");
    }
}

fuzz_target!(|chosen: &[u8]| {
    let bytes = prolong(chosen, 8192);
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(&bytes)) else { return };
    let mut bench = Bench::new(&input);
    for step in &input.steps {
        bench.step(step);
    }
    let Bench { driver, model, .. } = bench;
    drop(driver);
    assert!(std::fs::read(&*PATH).unwrap() == model.file, "the file is not the model's");
});
