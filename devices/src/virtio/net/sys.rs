//! The system calls of a network card that std has no safe face for. Its `unsafe` is here and in
//! `vhost_sys`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use vm_memory::VolatileSlice;

use super::super::AccessError;

/// The most pieces that one call takes (`IOV_MAX` of Linux).
const MAX_PIECES: usize = 1024;
/// So many are listed without an allocation: more than the frames of any usual driver have.
const USUAL_PIECES: usize = 64;

type Piece<'a> = Result<VolatileSlice<'a>, AccessError>;

/// `writev`: `header`, then `slices`.
pub(super) fn writev<'a>(
    fd: BorrowedFd<'_>,
    header: &[u8],
    slices: impl Iterator<Item = Piece<'a>>,
) -> io::Result<usize> {
    let mut list = List::new();
    // The kernel only reads it.
    list.push(libc::iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() })?;
    list.extend(slices)?;
    // SAFETY: `list` names `header` and the memory of `slices`, whose lifetimes are those of borrows
    // that last until this function returns; the kernel reads from it during the call only.
    retry(|| unsafe { libc::writev(fd.as_raw_fd(), list.as_ptr(), list.count()) })
}

/// `readv` into `slices`, then `rest`.
pub(super) fn readv<'a>(
    fd: BorrowedFd<'_>,
    slices: impl Iterator<Item = Piece<'a>>,
    rest: &mut [u8],
) -> io::Result<usize> {
    let mut list = List::new();
    list.extend(slices)?;
    list.push(libc::iovec { iov_base: rest.as_mut_ptr().cast(), iov_len: rest.len() })?;
    // SAFETY: as in `writev`; the kernel writes to guest memory, which has no Rust references, and to
    // `rest`, which is borrowed for this call alone.
    retry(|| unsafe { libc::readv(fd.as_raw_fd(), list.as_ptr(), list.count()) })
}

/// Memory as the kernel wants it named.
struct List {
    usual: [MaybeUninit<libc::iovec>; USUAL_PIECES],
    /// How many of `usual` are set.
    len: usize,
    /// All of them, if they are more than usual.
    many: Vec<libc::iovec>,
}

impl List {
    fn new() -> Self {
        Self { usual: [const { MaybeUninit::uninit() }; USUAL_PIECES], len: 0, many: Vec::new() }
    }

    fn extend<'a>(&mut self, slices: impl Iterator<Item = Piece<'a>>) -> io::Result<()> {
        for slice in slices {
            let slice = slice.map_err(io::Error::other)?;
            let iov_base = slice.ptr_guard_mut().as_ptr().cast();
            self.push(libc::iovec { iov_base, iov_len: slice.len() })?;
        }
        Ok(())
    }

    fn push(&mut self, piece: libc::iovec) -> io::Result<()> {
        if self.many.is_empty() {
            if let Some(slot) = self.usual.get_mut(self.len) {
                slot.write(piece);
                self.len = self.len.saturating_add(1);
                return Ok(());
            }
            // SAFETY: all of `usual` was written, as `len` has gone up to its end.
            self.many.extend(self.usual.iter().map(|piece| unsafe { piece.assume_init() }));
        }
        if self.many.len() == MAX_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.many.push(piece);
        Ok(())
    }

    fn as_ptr(&self) -> *const libc::iovec {
        if self.many.is_empty() { self.usual.as_ptr().cast() } else { self.many.as_ptr() }
    }

    fn count(&self) -> libc::c_int {
        let count = if self.many.is_empty() { self.len } else { self.many.len() };
        libc::c_int::try_from(count).unwrap_or(0)
    }
}

fn retry(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(count) => return Ok(count),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// Sends what `data` holds over a socket, without a signal if nobody is there to read it.
pub(super) fn send(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length are those of `data`, which the kernel only reads.
    retry(|| unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), flags) })
}

/// Fills `data` from a socket as far as there is something.
pub(super) fn receive(fd: BorrowedFd<'_>, data: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT;
    // SAFETY: the pointer and the length are those of `data`, which is borrowed for this call alone.
    retry(|| unsafe { libc::recv(fd.as_raw_fd(), data.as_mut_ptr().cast(), data.len(), flags) })
}

/// Makes reads and writes return instead of waiting.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes nothing.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: F_SETFL takes an integer.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// Attaches an opened `/dev/net/tun` to the tap `name`, or creates it.
pub(super) fn set_interface(
    tun: BorrowedFd<'_>,
    name: &CStr,
    flags: libc::c_int,
) -> io::Result<()> {
    let mut request = request(name);
    request.ifr_ifru.ifru_flags = flags_bits(flags);
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, which `request` is.
    check(unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(())
}

/// Attaches a queue of a tap (`IFF_ATTACH_QUEUE`) or detaches it (`IFF_DETACH_QUEUE`).
pub(super) fn set_queue(tap: BorrowedFd<'_>, flag: libc::c_int) -> io::Result<()> {
    let mut request = request(c"");
    request.ifr_ifru.ifru_flags = flags_bits(flag);
    // SAFETY: TUNSETQUEUE reads a `struct ifreq`, which `request` is.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETQUEUE, &mut request) })?;
    Ok(())
}

/// The flags of the interface that an open `/dev/net/tun` is attached to.
pub(super) fn interface_flags(tap: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut request = request(c"");
    // SAFETY: TUNGETIFF writes a `struct ifreq`, which `request` is.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNGETIFF, &mut request) })?;
    // SAFETY: TUNGETIFF set the flags; any bits are a valid number.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok(libc::c_int::from(flags) & 0xffff)
}

/// How many bytes of header come before a frame.
pub(super) fn set_header_len(tap: BorrowedFd<'_>, len: libc::c_int) -> io::Result<()> {
    // SAFETY: TUNSETVNETHDRSZ reads an int.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &len) })?;
    Ok(())
}

/// What may be left undone in frames that come from a tap (`TUN_F_…`).
pub(super) fn set_offloads(tap: BorrowedFd<'_>, offloads: libc::c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes its bits as a value.
    check(unsafe {
        libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
    })?;
    Ok(())
}

/// Whether there is a network interface called `name`.
pub(super) fn interface_exists(name: &CStr) -> bool {
    // SAFETY: `name` ends with a zero.
    unsafe { libc::if_nametoindex(name.as_ptr()) != 0 }
}

/// Makes the network interface `name` one that carries frames.
pub(super) fn set_up(name: &CStr) -> io::Result<()> {
    // SAFETY: socket takes integers.
    let socket =
        check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: it was opened just now, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut request = request(name);
    // SAFETY: SIOCGIFFLAGS reads and writes a `struct ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS set the flags; any bits are a valid number.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | flags_bits(libc::IFF_UP);
    // SAFETY: SIOCSIFFLAGS reads a `struct ifreq`, which `request` is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &mut request) })?;
    Ok(())
}

/// A request about the interface `name`, which is at most 15 bytes long.
fn request(name: &CStr) -> libc::ifreq {
    // SAFETY: all zeroes are a valid `struct ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    let most = request.ifr_name.len().saturating_sub(1);
    for (to, from) in request.ifr_name.iter_mut().take(most).zip(name.to_bytes()) {
        *to = from.cast_signed();
    }
    request
}

/// The lower 16 bits, as the kernel keeps them.
fn flags_bits(flags: libc::c_int) -> libc::c_short {
    let [a, b, ..] = flags.to_le_bytes();
    libc::c_short::from_le_bytes([a, b])
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn any_number_of_pieces_up_to_the_kernels_limit() {
        let (a, b) = UnixDatagram::pair().unwrap();
        for count in [0, 1, 63, 64, 65, 200, 1023] {
            let mut memory: Vec<u8> =
                (0..count).map(|index| u8::try_from(index % 251).unwrap()).collect();
            let expected = [&[7, 8], memory.as_slice()].concat();
            let pieces = |memory: &mut [u8]| {
                // SAFETY: each slice is one byte of `memory`, which outlives it.
                let slice = |byte: &mut u8| unsafe { VolatileSlice::new(byte, 1) };
                memory.iter_mut().map(|byte| Ok(slice(byte))).collect::<Vec<Piece<'_>>>()
            };
            let sent = writev(a.as_fd(), &[7, 8], pieces(&mut memory).into_iter()).unwrap();
            assert_eq!(sent, count + 2);
            let (mut into, mut rest) = (vec![0; count], [0; 5]);
            let read = readv(b.as_fd(), pieces(&mut into).into_iter(), &mut rest).unwrap();
            assert_eq!(read, count + 2);
            into.extend(&rest[..2]);
            assert_eq!(into, expected);
        }
        let mut memory = [0; 1024];
        let piece = |byte: &mut u8| -> Piece<'_> {
            // SAFETY: as above.
            Ok(unsafe { VolatileSlice::new(byte, 1) })
        };
        writev(a.as_fd(), &[0], memory.iter_mut().map(piece)).unwrap_err();
    }
}
