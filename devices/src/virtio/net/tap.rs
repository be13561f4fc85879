//! A tap of the host: a network interface whose cable is a file descriptor.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use super::backend::{BackendError, Frame, NetBackend, Room};
use super::error::NetError;
use super::header::HEADER_LEN;
use super::offloads::Offloads;
use super::sys;

/// The name of an interface has fewer bytes than this (`IFNAMSIZ`).
const NAME_SIZE: usize = 16;

/// One queue of a tap.
#[derive(Debug)]
pub(super) struct Tap {
    queue: OwnedFd,
    /// What the host's kernel can do; the same in both directions.
    offloads: Offloads,
    active: bool,
}

/// Opens the tap `name`, or creates it, once for each queue.
pub(super) fn open(name: &str, queues: u16) -> Result<Vec<Tap>, NetError> {
    let interface = interface_name(name)?;
    let existed = sys::interface_exists(&interface);
    let mut multi = queues > 1;
    let mut taps: Vec<Tap> = Vec::new();
    while taps.len() < usize::from(queues) {
        let tun = open_tun()?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let multi_queue = if multi { libc::IFF_MULTI_QUEUE } else { 0 };
        match sys::set_interface(tun.as_fd(), &interface, flags | multi_queue) {
            Ok(()) => taps.push(Tap::new(tun, name)?),
            // One that was made for several queues can be used with one.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) && !multi => multi = true,
            Err(error) => return Err(refusal(name, queues, error)),
        }
    }
    if !existed {
        // Nobody else can have done it. Without the right to, there is somebody else who will.
        let _ = sys::set_up(&interface);
    }
    Ok(taps)
}

/// Takes the queues of a tap that are open already.
pub(super) fn from_fds(fds: Vec<OwnedFd>) -> Result<Vec<Tap>, NetError> {
    let take = |fd: OwnedFd| {
        let flags = sys::interface_flags(fd.as_fd());
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags.is_ok_and(|flags| flags & needed == needed) {
            let name = format!("file descriptor {}", fd.as_raw_fd());
            Tap::new(fd, &name)
        } else {
            Err(NetError::TapFd { fd: fd.as_raw_fd() })
        }
    };
    fds.into_iter().map(take).collect()
}

impl Tap {
    /// For a descriptor that is attached to a tap.
    fn new(queue: OwnedFd, name: &str) -> Result<Self, NetError> {
        let failed = |step| {
            let name = name.to_owned();
            move |source| NetError::Tap { name, step, source }
        };
        let fd = queue.as_fd();
        sys::set_nonblocking(fd).map_err(failed("F_SETFL"))?;
        let header_len = libc::c_int::try_from(HEADER_LEN).unwrap_or(12);
        sys::set_header_len(fd, header_len).map_err(failed("TUNSETVNETHDRSZ"))?;
        let known = [Offloads::ALL, Offloads::TCP];
        let offloads = known.into_iter().find(|known| sys::set_offloads(fd, bits(*known)).is_ok());
        sys::set_offloads(fd, 0).map_err(failed("TUNSETOFFLOAD"))?;
        Ok(Self { queue, offloads: offloads.unwrap_or(Offloads::NONE), active: true })
    }
}

impl NetBackend for Tap {
    fn send_offloads(&self) -> Offloads {
        self.offloads
    }

    fn receive_offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        match sys::set_offloads(self.queue.as_fd(), bits(offloads)) {
            // Detached or deleted: another queue sets it for all, or there is nothing to set.
            Err(error) if is_gone(&error) => Ok(()),
            result => result,
        }
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if active == self.active {
            return Ok(());
        }
        let flag = if active { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        match sys::set_queue(self.queue.as_fd(), flag) {
            // The answer to a detached queue whose interface was deleted: `receive` will find out.
            Err(error) if active && error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
        self.active = active;
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
        let header = frame.header().to_bytes();
        match sys::writev(self.queue.as_fd(), &header, frame.slices()) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(BackendError::WouldBlock)
            }
            Err(error) if is_gone(&error) => Err(BackendError::Gone(error)),
            // The interface is down, the frame is not what its header says, memory is short.
            Err(_) => Err(BackendError::Refused),
        }
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        match room.read_from(self.queue.as_fd()) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(BackendError::WouldBlock)
            }
            Err(error) if is_about_frame(&error) => Err(BackendError::Refused),
            Err(error) => Err(BackendError::Gone(error)),
        }
    }

    fn check(&self) -> io::Result<()> {
        sys::interface_flags(self.queue.as_fd()).map(drop)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }
}

fn open_tun() -> Result<OwnedFd, NetError> {
    let file: io::Result<File> = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun");
    file.map(OwnedFd::from).map_err(|error| match error.raw_os_error() {
        // ENODEV: the node is there, the module is not.
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => NetError::TunMissing,
        Some(libc::EACCES | libc::EPERM) => NetError::TunPermission,
        _ => NetError::TunOpen(error),
    })
}

fn refusal(name: &str, queues: u16, source: io::Error) -> NetError {
    let name = name.to_owned();
    match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => NetError::TapPermission { name, queues },
        Some(libc::EBUSY) => NetError::TapBusy { name },
        Some(libc::EINVAL | libc::E2BIG) => NetError::TapKind { name, queues },
        _ => NetError::Tap { name, step: "TUNSETIFF", source },
    }
}

/// What the kernel takes as a name. (It would also take one with `%d` in it, and choose a number.)
fn interface_name(name: &str) -> Result<CString, NetError> {
    let error = || NetError::TapName { name: name.to_owned() };
    let odd = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b || b"/:%".contains(&byte);
    if name.is_empty() || name.len() >= NAME_SIZE || name.bytes().any(odd) {
        return Err(error());
    }
    if name == "." || name == ".." {
        return Err(error());
    }
    CString::new(name).map_err(|_| error())
}

/// Whether the interface was deleted, or the queue is detached from it.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADFD | libc::ENODEV | libc::ENXIO))
}

/// Whether a tap could not give one frame, which is lost, and may well give the next.
fn is_about_frame(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EFAULT | libc::ENOMEM))
}

fn bits(offloads: Offloads) -> libc::c_uint {
    let Offloads { checksum, tcp4, tcp6, ecn, udp4, udp6 } = offloads;
    // The kernel refuses one kind of UDP without the other; it cuts up both then.
    let udp = udp4 && udp6;
    let bits = [
        (checksum, libc::TUN_F_CSUM),
        (tcp4, libc::TUN_F_TSO4),
        (tcp6, libc::TUN_F_TSO6),
        (ecn, libc::TUN_F_TSO_ECN),
        (udp, libc::TUN_F_USO4),
        (udp, libc::TUN_F_USO6),
    ];
    bits.iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | bit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_can_have() {
        for name in
            ["", "0123456789abcdef", "a/b", "a b", "a\tb", "tap%d", "eth0:1", ".", "..", "a\0b"]
        {
            let error = interface_name(name).expect_err(name).to_string();
            assert!(error.contains(&format!("{name:?}")), "{error}");
        }
        assert_eq!(interface_name("0123456789abcde").unwrap().to_bytes(), b"0123456789abcde");
    }

    #[test]
    fn a_descriptor_of_something_else_is_no_tap() {
        let null = OwnedFd::from(File::open("/dev/null").unwrap());
        let fd = null.as_raw_fd();
        let error = from_fds(vec![null]).unwrap_err();
        assert!(matches!(error, NetError::TapFd { fd: number } if number == fd), "{error}");
    }

    #[test]
    fn one_kind_of_udp_is_left_out() {
        let one = Offloads { udp6: false, ..Offloads::ALL };
        assert_eq!(bits(one), bits(Offloads::TCP));
        assert_ne!(bits(Offloads::ALL), bits(Offloads::TCP));
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let of = |errno, queues| {
            refusal("tap7", queues, io::Error::from_raw_os_error(errno)).to_string()
        };
        assert!(of(libc::EPERM, 1).contains("ip tuntap add dev tap7 mode tap user USER)"));
        assert!(of(libc::EPERM, 2).contains("mode tap user USER multi_queue)"));
        assert!(of(libc::EBUSY, 1).contains("tap7 is in use"));
        assert!(of(libc::EINVAL, 1).contains("tap7 is no tap"));
        assert!(of(libc::EINVAL, 2).contains("tap7 cannot be used with 2 queues"));
        assert!(of(libc::ENOMEM, 2).contains("TUNSETIFF failed"));
    }
}
