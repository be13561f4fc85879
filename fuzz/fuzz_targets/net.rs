//! A network card against a model of one: frames both ways over a socket pair, in any cut of buffers,
//! with headers and lengths that are mostly sound, commands that mostly are not, and resets. Every frame
//! that must arrive does, as it was and in order, and nothing else.

#![no_main]

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use arbitrary::{Arbitrary, Unstructured};
use libfuzzer_sys::fuzz_target;
use sparkler_devices::virtio::mock::{MockDriver, PATIENCE};
use sparkler_devices::virtio::net::{
    BackendError, Frame, FrameHeader, Net, NetBackend, NetDevice, NetHandle, NetStats, Offloads,
    Room,
};
use sparkler_fuzz::{cut, prolong};
use vm_memory::{Bytes, GuestAddress};

const RX: u16 = 0;
const TX: u16 = 1;
const CONTROL: u16 = 2;
const HEADER: usize = 12;
const LONGEST: usize = 65_554;
/// With the largest MTU, and a header with a VLAN's tag.
const PROMISED: usize = 65_553;
const SHORTEST: usize = 14;
const F_MRG_RXBUF: u64 = 1 << 15;
const F_EVENT_IDX: u64 = 1 << 29;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

#[derive(Arbitrary, Debug)]
struct Input {
    mergeable: bool,
    event_idx: bool,
    /// With the backend of this target, which takes every offload, instead of the plain stream.
    offloads: bool,
    steps: [Step; 12],
}

#[derive(Arbitrary, Debug)]
enum Step {
    Send(Sent),
    SendAlso(Sent),
    Batch([Sent; 8]),
    Give(Given),
    GiveAlso(Given),
    GiveBatch([Given; 8]),
    Offer {
        count: u8,
        size: u16,
        cuts: [u16; 2],
    },
    Command {
        class: u8,
        command: u8,
        data: Vec<u8>,
        cuts: [u16; 2],
        room: bool,
    },
    /// The other end says that a frame is so long.
    Length(u32),
    Reset,
}

#[derive(Arbitrary, Debug)]
struct Sent {
    len: Len,
    header: Header,
    seed: u8,
    cuts: [u16; 3],
}

#[derive(Arbitrary, Debug)]
struct Given {
    len: Len,
    seed: u8,
    /// Of buffers that are offered if there are too few.
    size: u16,
    /// Where the other end pauses.
    cut: u16,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Len {
    Small(u8),
    Usual(u16),
    Any(u16),
    /// About the longest.
    Longest(u8),
    /// Much too long, in kibibytes.
    Huge(u8),
}

#[derive(Arbitrary, Debug)]
enum Header {
    Plain,
    PlainToo,
    Checksum { start: u8, offset: u8 },
    Segments { kind: u8, size: u16, len: u8, start: u8, offset: u8 },
    Any([u8; HEADER]),
}

impl Len {
    fn bytes(self) -> usize {
        match self {
            Self::Small(len) => usize::from(len),
            Self::Usual(len) => usize::from(len % 1600),
            Self::Any(len) => usize::from(len),
            Self::Longest(len) => LONGEST + 100 - usize::from(len),
            Self::Huge(len) => usize::from(len) << 10,
        }
    }
}

impl Header {
    fn bytes(&self) -> [u8; HEADER] {
        match *self {
            Self::Plain | Self::PlainToo => [0; HEADER],
            Self::Checksum { start, offset } => [1, 0, 0, 0, 0, 0, start, 0, offset, 0, 0, 0],
            Self::Segments { kind, size, len, start, offset } => {
                let kind = [1, 4, 5, 0x81, 0x84][usize::from(kind % 5)];
                let [low, high] = size.to_le_bytes();
                [1, kind, len, 0, low, high, start, 0, offset, 0, 0, 0]
            }
            Self::Any(bytes) => bytes,
        }
    }
}

/// The rules of virtio 1.2, 5.1.6.2, once more.
fn is_sound(header: [u8; HEADER], len: usize, offloads: bool) -> bool {
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (checksum, kind) = (header[0] & 1 != 0, header[1]);
    let checksum_fits = !checksum || offloads && field(6) + field(8) + 2 <= len;
    let segments = match kind {
        0 => true,
        1 | 4 | 5 | 0x81 | 0x84 => offloads && checksum && field(4) > 0 && field(2) <= len,
        _ => false,
    };
    (SHORTEST..=LONGEST).contains(&len) && checksum_fits && segments
}

/// The stream's framing over again, in the simplest way, with offloads: each frame that is sent has the
/// header's first ten bytes before it.
struct Own {
    socket: UnixStream,
    input: Vec<u8>,
    output: Vec<u8>,
}

impl NetBackend for Own {
    fn send_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn receive_offloads(&self) -> Offloads {
        Offloads::ALL
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
        if self.output.len() > 1 << 20 {
            return Err(BackendError::WouldBlock);
        }
        self.output.extend((frame.len() as u32).to_be_bytes());
        self.output.extend(frame.to_vec()?);
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        loop {
            if let Some((length, rest)) = self.input.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if length > LONGEST {
                    return Err(BackendError::Gone(ErrorKind::InvalidData.into()));
                }
                if let Some(frame) = rest.get(..length) {
                    let result = room.put(FrameHeader::default(), frame);
                    self.input.drain(..4 + length);
                    return result;
                }
            }
            let mut bytes = [0; 4096];
            match self.socket.read(&mut bytes) {
                Ok(0) => return Err(BackendError::Gone(ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.input.extend(&bytes[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(BackendError::WouldBlock);
                }
                Err(error) => return Err(BackendError::Gone(error)),
            }
        }
    }

    fn flush(&mut self) -> Result<(), BackendError> {
        while !self.output.is_empty() {
            match self.socket.write(&self.output) {
                Ok(count) => drop(self.output.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Err(BackendError::WouldBlock);
                }
                Err(error) => return Err(BackendError::Gone(error)),
            }
        }
        Ok(())
    }

    fn fd(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        Some(std::os::fd::AsFd::as_fd(&self.socket))
    }
}

struct Bench {
    driver: MockDriver,
    handle: NetHandle,
    peer: UnixStream,
    features: u64,
    mergeable: bool,
    offloads: bool,
    /// Buffers that the card has: heads, descriptors, and where they are.
    offered: VecDeque<Buffer>,
    gone: bool,
    next_address: u64,
}

struct Buffer {
    head: u16,
    descriptors: Vec<u16>,
    pieces: Vec<(GuestAddress, usize)>,
}

impl Buffer {
    fn len(&self) -> usize {
        self.pieces.iter().map(|piece| piece.1).sum()
    }
}

impl Bench {
    fn new(input: &Input) -> Self {
        let (socket, peer) = UnixStream::pair().unwrap();
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        peer.set_write_timeout(Some(PATIENCE)).unwrap();
        let net = if input.offloads {
            socket.set_nonblocking(true).unwrap();
            Net::backend(Own { socket, input: vec![], output: vec![] })
        } else {
            Net::stream_fd(socket)
        };
        // So that every frame may wait for buffers: without, a long one is dropped if there are none.
        let net = net.mtu(u16::MAX).unwrap();
        let handle = net.handle();
        let mut driver = MockDriver::new(Box::new(NetDevice::new(net)));
        let without = [(input.mergeable, F_MRG_RXBUF), (input.event_idx, F_EVENT_IDX)];
        let without = without.into_iter().filter(|(on, _)| !on).fold(0, |all, (_, bit)| all | bit);
        let features = driver.offered() & !without;
        driver.start_with(features);
        Self {
            driver,
            handle,
            peer,
            features,
            mergeable: input.mergeable,
            offloads: input.offloads,
            offered: VecDeque::new(),
            gone: false,
            next_address: 0x50_0000,
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Send(sent) | Step::SendAlso(sent) => self.send(std::slice::from_ref(sent)),
            Step::Batch(batch) => self.send(batch),
            Step::Give(given) | Step::GiveAlso(given) => self.give(std::slice::from_ref(given)),
            Step::GiveBatch(batch) => self.give(batch),
            Step::Offer { count, size, cuts } => {
                for _ in 0..count % 16 {
                    self.offer(usize::from(size % 4096).max(HEADER), cuts);
                }
                self.notify(RX);
            }
            Step::Command { class, command, data, cuts, room } => {
                self.command(&[&[*class % 8, *command % 8], data.as_slice()].concat(), cuts, *room);
                // Whatever that was: everything is let through again.
                assert_eq!(self.command(&[0, 0, 1], &[1, 1], true), Some(0));
            }
            Step::Length(length) => self.length(*length),
            Step::Reset => self.reset(),
        }
        assert!(!self.driver.needs_reset());
    }

    fn reset(&mut self) {
        self.driver.reset();
        self.offered.clear();
        self.driver.start_with(self.features);
    }

    /// How many of the receive queue's descriptors are in use.
    fn descriptors(&self) -> usize {
        self.offered.iter().map(|buffer| buffer.descriptors.len()).sum()
    }

    /// Frames of the guest, offered all together.
    fn send(&mut self, batch: &[Sent]) {
        let dropped = |stats: NetStats| (stats.sent_malformed, stats.sent_without_link);
        let (mut malformed, mut without_link) = dropped(self.handle.stats());
        let mut expected = Vec::new();
        let mut heads = Vec::new();
        for sent in batch {
            let frame = frame(sent.len.bytes(), sent.seed);
            let bytes = [&sent.header.bytes(), frame.as_slice()].concat();
            heads.push(self.submit(TX, &bytes, &pieces(bytes.len(), &sent.cuts), &[]));
            if self.gone {
                without_link += 1;
            } else if is_sound(sent.header.bytes(), frame.len(), self.offloads) {
                expected.push(frame);
            } else {
                malformed += 1;
            }
        }
        self.notify(TX);
        for frame in expected {
            let mut length = [0; 4];
            self.peer.read_exact(&mut length).unwrap();
            assert_eq!(u32::from_be_bytes(length) as usize, frame.len());
            let mut bytes = vec![0; frame.len()];
            self.peer.read_exact(&mut bytes).unwrap();
            assert!(bytes == frame, "wrong data");
        }
        for buffer in heads {
            assert_eq!(self.used(TX), (buffer.head, 0));
            self.free(TX, buffer);
        }
        assert_eq!(dropped(self.handle.stats()), (malformed, without_link));
    }

    /// Frames for the guest.
    fn give(&mut self, batch: &[Given]) {
        if self.gone {
            return;
        }
        for given in batch {
            let frame = frame(given.len.bytes().min(PROMISED), given.seed);
            let bytes = [&(frame.len() as u32).to_be_bytes(), frame.as_slice()].concat();
            let (now, later) = bytes.split_at(usize::from(given.cut).min(bytes.len()));
            let whole = HEADER + frame.len();
            // Of these, the queue can hold enough.
            let size = usize::from(given.size % 4096).max(HEADER).max(whole / 50);
            // Room for enough of these must be left in the queue.
            if self.descriptors() > 100 {
                self.reset();
            }
            let before = self.handle.stats();
            let mut writer = self.peer.try_clone().unwrap();
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    writer.write_all(now).unwrap();
                    writer.write_all(later).unwrap();
                });
                self.take(&frame, size, before);
            });
        }
    }

    /// The guest must get `frame`, or it must be counted.
    fn take(&mut self, frame: &[u8], size: usize, before: NetStats) {
        let whole = HEADER + frame.len();
        if self.offered.is_empty() {
            self.offer(size, &[]);
        }
        let sound = frame.len() >= SHORTEST;
        let fits = self.mergeable || self.offered[0].len() >= whole;
        if !sound || !fits {
            self.notify(RX);
            let counts = |stats: NetStats| (stats.received_malformed, stats.received_too_long);
            let (mut malformed, mut too_long) = counts(before);
            if sound {
                too_long += 1
            } else {
                malformed += 1
            }
            return wait_until(|| counts(self.handle.stats()) == (malformed, too_long));
        }
        // Some of them only when the card has begun to wait.
        while self.offered.iter().map(Buffer::len).sum::<usize>() < whole {
            self.offer(size, &[3]);
            if self.offered.len() % 16 == 0 {
                self.notify(RX);
            }
        }
        self.notify(RX);
        self.check(frame);
    }

    fn check(&mut self, frame: &[u8]) {
        let mut received: Vec<u8> = Vec::new();
        let mut buffers = 0;
        while buffers == 0 || received.len() < HEADER + frame.len() {
            // What belongs to a frame comes at once.
            let (head, len) = if buffers == 0 {
                self.used(RX)
            } else {
                let used = self.driver.ring(RX).take_used().expect("a part of a frame is missing");
                (used.id as u16, used.len as usize)
            };
            let buffer = self.offered.pop_front().unwrap();
            assert_eq!(buffer.head, head, "not in order");
            let mut bytes = Vec::new();
            for (address, room) in &buffer.pieces {
                let start = bytes.len();
                bytes.resize(start + room, 0);
                self.driver.memory().read_slice(&mut bytes[start..], *address).unwrap();
            }
            received.extend(&bytes[..len]);
            buffers += 1u16;
            self.free(RX, buffer);
        }
        let (header, data) = received.split_at(HEADER);
        assert_eq!(&header[..10], &[0; 10]);
        assert_eq!(header[10..], buffers.to_le_bytes());
        assert!(data == frame, "wrong data");
    }

    fn length(&mut self, length: u32) {
        if self.gone || length as usize <= LONGEST {
            return;
        }
        self.peer.write_all(&length.to_be_bytes()).unwrap();
        self.offer(100, &[]);
        self.notify(RX);
        wait_until(|| !self.handle.link());
        self.gone = true;
    }

    fn command(&mut self, bytes: &[u8], cuts: &[u16], room: bool) -> Option<u8> {
        let room: &[usize] = if room { &[1] } else { &[] };
        let buffer = self.submit(CONTROL, bytes, &pieces(bytes.len(), cuts), room);
        self.notify(CONTROL);
        assert_eq!(self.used(CONTROL), (buffer.head, room.len()));
        let answer = buffer.pieces.last().filter(|_| !room.is_empty()).map(|(address, _)| {
            let answer: u8 = self.driver.memory().read_obj(*address).unwrap();
            assert!(answer < 2);
            answer
        });
        self.free(CONTROL, buffer);
        answer
    }

    fn offer(&mut self, size: usize, cuts: &[u16]) {
        if self.descriptors() < 250 {
            let room = pieces(size, cuts);
            let buffer = self.submit(RX, &[], &[], &room);
            self.offered.push_back(buffer);
        }
    }

    fn submit(&mut self, queue: u16, bytes: &[u8], readable: &[usize], room: &[usize]) -> Buffer {
        let mut buffers = Vec::new();
        let mut rest = bytes;
        for &len in readable {
            let (now, later) = rest.split_at(len);
            let address = self.place(len);
            self.driver.memory().write_slice(now, address).unwrap();
            buffers.push((address, len, 0));
            rest = later;
        }
        for &len in room {
            let address = self.place(len);
            self.driver.memory().write_slice(&vec![0xee; len], address).unwrap();
            buffers.push((address, len, WRITE));
        }
        let ring = self.driver.ring(queue);
        let descriptors: Vec<u16> = buffers.iter().map(|_| ring.take_descriptor()).collect();
        for (position, (address, len, flags)) in buffers.iter().enumerate() {
            let next = descriptors.get(position + 1).copied();
            let flags = flags | next.map_or(0, |_| NEXT);
            let index = descriptors[position];
            ring.set_descriptor(index, *address, *len as u32, flags, next.unwrap_or(0));
        }
        ring.offer(descriptors[0]);
        let pieces = buffers.into_iter().filter(|buffer| buffer.2 == WRITE);
        let pieces = pieces.map(|(address, len, _)| (address, len)).collect();
        Buffer { head: descriptors[0], descriptors, pieces }
    }

    /// Guest memory that nobody else uses for a while.
    fn place(&mut self, len: usize) -> GuestAddress {
        if self.next_address + len as u64 > 0x3f0_0000 {
            self.next_address = 0x50_0000;
        }
        let address = GuestAddress(self.next_address);
        self.next_address += len as u64 + 3;
        address
    }

    fn notify(&mut self, queue: u16) {
        if self.driver.ring(queue).wants_notification() {
            self.driver.notify(queue);
        }
    }

    fn used(&mut self, queue: u16) -> (u16, usize) {
        let interrupt = self.driver.interrupt().clone();
        let used = interrupt.wait_until("a buffer", || self.driver.ring(queue).take_used());
        (used.id as u16, used.len as usize)
    }

    fn free(&mut self, queue: u16, buffer: Buffer) {
        for index in buffer.descriptors {
            self.driver.ring(queue).give_descriptor(index);
        }
    }
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(7) ^ (at >> 8) as u8 ^ seed).collect()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < PATIENCE, "waited too long");
        std::thread::yield_now();
    }
}

/// Of frames, the first buffers are short.
fn pieces(len: usize, cuts: &[u16]) -> Vec<usize> {
    cut(len, cuts.iter().map(|cut| usize::from(cut % 2000)))
}

fuzz_target!(|chosen: &[u8]| {
    let bytes = prolong(chosen, 4096);
    let Ok(input) = Input::arbitrary(&mut Unstructured::new(&bytes)) else { return };
    let mut bench = Bench::new(&input);
    for step in &input.steps {
        bench.step(step);
    }
});
