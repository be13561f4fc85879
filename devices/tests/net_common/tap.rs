//! A tap of this host's kernel, in a network namespace of the test's own.

use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sparkler_devices::virtio::mock::PATIENCE;

use super::{Guest, HEADER, PLAIN, Received, frame};

/// Local experimental Ethertype: no kernel sends such frames by itself.
pub(crate) const EXPERIMENTAL: [u8; 2] = [0x88, 0xb5];
pub(crate) const TCP4: usize = 14 + 20 + 20;

/// Moves the test's thread, and the threads that it starts, into a new network namespace. One test at a
/// time: what another one starts has our descriptors until it executes its program, and an interface is
/// there as long as its descriptor is.
pub(crate) fn isolate() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: unshare takes an integer, and only this thread's view of the network changes.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "the test must run as root");
    alone
}

pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status().unwrap();
    assert!(status.success(), "ip {arguments}");
}

pub(crate) fn exists(interface: &str) -> bool {
    let name = CString::new(interface).unwrap();
    // SAFETY: the name ends with a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// A socket that sends and receives whole frames on an interface of the host, with a header of 10 bytes
/// before each (`PACKET_VNET_HDR`).
pub(crate) struct Host(OwnedFd);

impl Host {
    pub(crate) fn new(interface: &str) -> Self {
        let name = CString::new(interface).unwrap();
        let all = u16::to_be(libc::ETH_P_ALL.try_into().unwrap());
        // SAFETY: each call gets pointers to values of the types and lengths that it is told.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, all.into());
            assert!(fd >= 0);
            let socket = Self(OwnedFd::from_raw_fd(fd));
            let on = 1i32;
            let option = |level, name, value: *const libc::c_void, len| {
                assert_eq!(libc::setsockopt(fd, level, name, value, len), 0);
            };
            option(libc::SOL_PACKET, libc::PACKET_VNET_HDR, (&raw const on).cast(), 4);
            let patience =
                libc::timeval { tv_sec: PATIENCE.as_secs().try_into().unwrap(), tv_usec: 0 };
            option(libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const patience).cast(), 16);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET.try_into().unwrap();
            address.sll_protocol = all;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()).try_into().unwrap();
            let len = size_of::<libc::sockaddr_ll>().try_into().unwrap();
            assert_eq!(libc::bind(fd, (&raw const address).cast(), len), 0);
            socket
        }
    }

    pub(crate) fn give(&self, header: &[u8; 10], frame: &[u8]) {
        let bytes = [header, frame].concat();
        // SAFETY: the pointer and the length are those of `bytes`.
        let sent = unsafe { libc::write(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
        assert_eq!(sent, bytes.len().try_into().unwrap(), "{}", std::io::Error::last_os_error());
    }

    /// The next frame that came from the guest: those that the test sent are seen here too.
    pub(crate) fn take(&self, is_wanted: impl Fn(&[u8]) -> bool) -> ([u8; 10], Vec<u8>) {
        loop {
            let mut bytes = vec![0; 70_000];
            let fd = self.0.as_raw_fd();
            // SAFETY: the pointer and the length are those of `bytes`.
            let len = unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) };
            if len < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::ENETDOWN) {
                continue; // It was down meanwhile, which is told once.
            }
            bytes.truncate(len.try_into().expect("no frame came"));
            let (header, frame) = bytes.split_first_chunk::<10>().unwrap();
            if is_wanted(frame) {
                return (*header, frame.to_vec());
            }
        }
    }
}

pub(crate) fn experimental(len: usize, seed: u8) -> Vec<u8> {
    let mut frame = frame(len, seed);
    frame[12..14].copy_from_slice(&EXPERIMENTAL);
    frame
}

/// The next frame that is not the kernel's own.
pub(crate) fn receive(guest: &mut Guest, is_wanted: impl Fn(&[u8]) -> bool) -> Received {
    loop {
        let received = guest.receive();
        guest.offer(received.num_buffers().into(), 1536);
        if is_wanted(&received.frame) {
            return received;
        }
    }
}

pub(crate) fn assert_works(guest: &mut Guest, host: &Host) {
    for (seed, len) in [(1, 60), (2, 1514)] {
        let frame = experimental(len, seed);
        guest.send(PLAIN, &frame);
        assert_eq!(host.take(|taken| taken == frame).0, [0; 10]);
        let frame = experimental(len, seed + 100);
        host.give(&[0; 10], &frame);
        receive(guest, |received| received == frame);
    }
}

/// A segment of TCP over IPv4 that is to be cut up, with its header of 10 bytes.
pub(crate) fn tcp(payload: usize) -> ([u8; 10], Vec<u8>) {
    let mut frame = vec![0xa5; TCP4 + payload];
    frame[..12].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 7]);
    frame[12..14].copy_from_slice(&[8, 0]);
    let len = u16::try_from(40 + payload).unwrap().to_be_bytes();
    let ip = [0x45, 0, len[0], len[1], 0, 1, 0, 0, 64, 6, 0, 0, 10, 0, 0, 2, 10, 0, 0, 1];
    frame[14..34].copy_from_slice(&ip);
    let tcp = [0x30, 0x39, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0];
    frame[34..54].copy_from_slice(&tcp);
    ([1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0], frame)
}

pub(crate) fn is_tcp(frame: &[u8]) -> bool {
    frame.len() >= TCP4
        && frame[12..14] == [8, 0]
        && frame[23] == 6
        && frame[34..36] == [0x30, 0x39]
}

pub(crate) fn with_count(header: [u8; 10]) -> [u8; HEADER] {
    let mut whole = [0; HEADER];
    whole[..10].copy_from_slice(&header);
    whole
}
