//! A driver of network cards for tests, and what is at the other end of the cable.
#![allow(dead_code)] // Each test file uses its own part of it.

pub(crate) mod tap;

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use sparkler_devices::BusDevice;
use sparkler_devices::virtio::Waker;
use sparkler_devices::virtio::mock::{MockDriver, PATIENCE};
use sparkler_devices::virtio::net::{
    BackendError, Frame, FrameHeader, Net, NetBackend, NetDevice, NetHandle, NetStats, Offloads,
    Room,
};

pub(crate) const RX: u16 = 0;
pub(crate) const TX: u16 = 1;
pub(crate) const CONTROL: u16 = 2;

pub(crate) const F_CSUM: u64 = 1 << 0;
pub(crate) const F_GUEST_CSUM: u64 = 1 << 1;
pub(crate) const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
pub(crate) const F_MTU: u64 = 1 << 3;
pub(crate) const F_MAC: u64 = 1 << 5;
pub(crate) const F_GUEST_TSO4: u64 = 1 << 7;
pub(crate) const F_GUEST_TSO6: u64 = 1 << 8;
pub(crate) const F_HOST_TSO4: u64 = 1 << 11;
pub(crate) const F_MRG_RXBUF: u64 = 1 << 15;
pub(crate) const F_STATUS: u64 = 1 << 16;
pub(crate) const F_CTRL_VQ: u64 = 1 << 17;
pub(crate) const F_CTRL_RX: u64 = 1 << 18;
pub(crate) const F_GUEST_ANNOUNCE: u64 = 1 << 21;
pub(crate) const F_MQ: u64 = 1 << 22;
pub(crate) const F_GUEST_USO6: u64 = 1 << 55;

pub(crate) const HEADER: usize = 12;
/// Nothing left undone.
pub(crate) const PLAIN: [u8; HEADER] = [0; HEADER];

pub(crate) struct Guest {
    pub(crate) driver: MockDriver,
    pub(crate) handle: NetHandle,
}

/// A frame as the driver gets it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) header: [u8; HEADER],
    pub(crate) frame: Vec<u8>,
}

impl Received {
    pub(crate) fn num_buffers(&self) -> u16 {
        u16::from_le_bytes([self.header[10], self.header[11]])
    }
}

impl Guest {
    /// With every feature.
    pub(crate) fn new(net: Net) -> Self {
        let mut guest = Self::unstarted(net);
        guest.driver.start();
        guest
    }

    /// With every feature but these.
    pub(crate) fn without(net: Net, features: u64) -> Self {
        let mut guest = Self::unstarted(net);
        let offered = guest.driver.offered();
        guest.driver.start_with(offered & !features);
        guest
    }

    pub(crate) fn unstarted(net: Net) -> Self {
        let handle = net.handle();
        Self { driver: MockDriver::new(Box::new(NetDevice::new(net))), handle }
    }

    pub(crate) fn restart(&mut self) {
        self.driver.reset();
        self.driver.start();
    }

    /// Sends a frame, and waits until the card has taken it.
    pub(crate) fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        self.driver.submit(TX, &[&header, frame], &[]);
        self.driver.wait(TX);
    }

    /// Offers buffers for frames.
    pub(crate) fn offer(&mut self, count: usize, size: usize) {
        for _ in 0..count {
            self.driver.submit(RX, &[], &[size]);
        }
    }

    /// Waits for a frame. All buffers of one must have been given back at once.
    pub(crate) fn receive(&mut self) -> Received {
        let (_, first) = self.driver.wait(RX);
        let (header, frame) = first.split_first_chunk::<HEADER>().expect("no header");
        let mut received = Received { header: *header, frame: frame.to_vec() };
        for _ in 1..received.num_buffers() {
            let (_, more) = self.driver.poll(RX).expect("a part of a frame is missing");
            received.frame.extend(more);
        }
        received
    }

    /// A command on the control queue: its answer.
    pub(crate) fn command(&mut self, class: u8, command: u8, data: &[u8]) -> u8 {
        self.command_on(CONTROL, class, command, data)
    }

    pub(crate) fn command_on(&mut self, queue: u16, class: u8, command: u8, data: &[u8]) -> u8 {
        let readable: &[&[u8]] =
            if data.is_empty() { &[&[class, command]] } else { &[&[class, command], data] };
        let answer = self.driver.request(queue, readable, &[1]);
        assert_eq!(answer.len(), 1);
        answer[0]
    }

    pub(crate) fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.driver.transport().read(0x100 + offset, &mut bytes);
        bytes
    }

    pub(crate) fn link(&self) -> bool {
        self.config::<2>(6)[0] & 1 != 0
    }

    /// Waits until the driver is told that its link is up or down.
    pub(crate) fn wait_for_link(&self, up: bool) {
        let interrupt = self.driver.interrupt();
        interrupt.wait_until("a change of the link", || (self.link() == up).then_some(()));
    }

    pub(crate) fn stats(&self) -> NetStats {
        self.handle.stats()
    }

    /// Waits until the counters are so.
    pub(crate) fn wait_for(&self, what: &str, is: impl Fn(&NetStats) -> bool) -> NetStats {
        let begin = Instant::now();
        loop {
            let stats = self.stats();
            if is(&stats) {
                return stats;
            }
            assert!(begin.elapsed() < PATIENCE, "waited too long for {what}: {stats:?}");
            std::thread::sleep(Duration::from_millis(1)); // There is nothing to be woken by.
        }
    }

    /// Sends and receives a frame: the card works.
    pub(crate) fn assert_works(&mut self, wire: &Wire) {
        let frame = frame(100, 7);
        let before = wire.sent().len();
        self.send(PLAIN, &frame);
        assert_eq!(wire.wait_for_sent(before + 1).last(), Some(&(FrameHeader::default(), frame)));
        let frame = self::frame(200, 8);
        self.offer(1, 2048);
        wire.give(&frame);
        assert_eq!(self.receive().frame, frame);
    }
}

/// Asks `question` until it has an answer.
pub(crate) fn wait_for<T>(what: &str, mut question: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = question() {
            return answer;
        }
        assert!(begin.elapsed() < PATIENCE, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(1)); // There is nothing to be woken by.
    }
}

/// A frame of `len` bytes for everybody, with `seed` in it.
pub(crate) fn frame(len: usize, seed: u8) -> Vec<u8> {
    let mut frame: Vec<u8> =
        (0..len).map(|at| u8::try_from(at % 251).unwrap().wrapping_mul(3) ^ seed).collect();
    let to = frame.len().min(6);
    frame[..to].fill(0xff);
    frame
}

/// The other end of a stream socket.
pub(crate) struct Peer(pub(crate) UnixStream);

impl Peer {
    /// A card and the other end of its cable.
    pub(crate) fn new() -> (Net, Self) {
        let (one, other) = UnixStream::pair().unwrap();
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        other.set_write_timeout(Some(PATIENCE)).unwrap();
        (Net::stream_fd(one), Self(other))
    }

    pub(crate) fn give(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).unwrap();
        self.0.write_all(&[&length.to_be_bytes(), frame].concat()).unwrap();
    }

    pub(crate) fn take(&mut self) -> Vec<u8> {
        let mut length = [0; 4];
        self.0.read_exact(&mut length).unwrap();
        let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
        self.0.read_exact(&mut frame).unwrap();
        frame
    }
}

/// A network that a test watches and breaks.
#[derive(Clone, Default)]
pub(crate) struct Wire(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    send_offloads: Offloads,
    receive_offloads: Offloads,
    sent: Vec<(FrameHeader, Vec<u8>)>,
    coming: VecDeque<(FrameHeader, Vec<u8>)>,
    /// How often the card asked for a frame.
    asked: u64,
    /// How often it asked for a file descriptor: at least once before each wait, and once after.
    waited: u64,
    blocked: bool,
    refuses: bool,
    gone: bool,
    /// It is gone when it was sent so many frames.
    cut_at: Option<usize>,
    active: Option<bool>,
    /// It does not change what is active, nor its offloads.
    stubborn: bool,
    /// How often it was told of either.
    changes: u64,
    offloads_set: Option<Offloads>,
    waker: Option<Waker>,
}

impl Wire {
    pub(crate) fn with_offloads(send: Offloads, receive: Offloads) -> Self {
        let wire = Self::default();
        wire.lock().send_offloads = send;
        wire.lock().receive_offloads = receive;
        wire
    }

    pub(crate) fn net(&self) -> Net {
        Net::backend(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    fn wake(&self) {
        let waker = self.lock().waker.clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A frame for the guest.
    pub(crate) fn give(&self, frame: &[u8]) {
        self.give_with(FrameHeader::default(), frame);
    }

    pub(crate) fn give_with(&self, header: FrameHeader, frame: &[u8]) {
        self.lock().coming.push_back((header, frame.to_vec()));
        self.wake();
    }

    /// How many frames the card has not asked for yet.
    pub(crate) fn coming(&self) -> usize {
        self.lock().coming.len()
    }

    pub(crate) fn asked(&self) -> u64 {
        self.lock().asked
    }

    /// Whether the card's thread sleeps when there is nothing to do.
    pub(crate) fn assert_idle(&self) {
        let before = self.lock().waited;
        std::thread::sleep(Duration::from_millis(300)); // That nothing happens needs some time to be seen.
        let waits = self.lock().waited - before;
        assert!(waits < 100, "{waits} waits without a reason");
    }

    pub(crate) fn sent(&self) -> Vec<(FrameHeader, Vec<u8>)> {
        self.lock().sent.clone()
    }

    pub(crate) fn wait_for_sent(&self, count: usize) -> Vec<(FrameHeader, Vec<u8>)> {
        wait_for("frames to be sent", || Some(self.sent()).filter(|sent| sent.len() >= count))
    }

    pub(crate) fn set_blocked(&self, blocked: bool) {
        self.lock().blocked = blocked;
        self.wake();
    }

    pub(crate) fn set_refuses(&self, refuses: bool) {
        self.lock().refuses = refuses;
    }

    /// The backend goes away.
    pub(crate) fn cut(&self) {
        self.lock().gone = true;
        self.wake();
    }

    /// The backend takes so many frames more, and then goes away.
    pub(crate) fn cut_after(&self, frames: usize) {
        let mut inner = self.lock();
        (inner.blocked, inner.cut_at) = (false, Some(inner.sent.len() + frames));
        drop(inner);
        self.wake();
    }

    pub(crate) fn set_stubborn(&self, stubborn: bool) {
        self.lock().stubborn = stubborn;
    }

    pub(crate) fn changes(&self) -> u64 {
        self.lock().changes
    }

    pub(crate) fn is_active(&self) -> Option<bool> {
        self.lock().active
    }

    pub(crate) fn offloads_set(&self) -> Option<Offloads> {
        self.lock().offloads_set
    }
}

impl NetBackend for Wire {
    fn send_offloads(&self) -> Offloads {
        self.lock().send_offloads
    }

    fn receive_offloads(&self) -> Offloads {
        self.lock().receive_offloads
    }

    fn start(&mut self, waker: Waker) -> io::Result<()> {
        self.lock().waker = Some(waker);
        Ok(())
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        let mut inner = self.lock();
        inner.changes += 1;
        if inner.stubborn {
            return Err(io::ErrorKind::Unsupported.into());
        }
        inner.offloads_set = Some(offloads);
        Ok(())
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        let mut inner = self.lock();
        inner.changes += 1;
        if inner.stubborn {
            return Err(io::ErrorKind::Unsupported.into());
        }
        inner.active = Some(active);
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
        let mut inner = self.lock();
        if inner.blocked {
            return Err(BackendError::WouldBlock);
        }
        if inner.gone {
            return Err(BackendError::Gone(io::ErrorKind::BrokenPipe.into()));
        }
        if inner.cut_at == Some(inner.sent.len()) {
            return Err(BackendError::Gone(io::ErrorKind::BrokenPipe.into()));
        }
        if inner.refuses {
            return Err(BackendError::Refused);
        }
        let bytes = frame.to_vec()?;
        inner.sent.push((frame.header(), bytes));
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        let mut inner = self.lock();
        inner.asked += 1;
        if inner.gone {
            return Err(BackendError::Gone(io::ErrorKind::BrokenPipe.into()));
        }
        let (header, frame) = inner.coming.pop_front().ok_or(BackendError::WouldBlock)?;
        room.put(header, &frame)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.lock().waited += 1;
        None
    }
}
