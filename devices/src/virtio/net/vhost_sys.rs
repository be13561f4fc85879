//! The system calls of vhost-net (`linux/vhost.h`). All its `unsafe` is here.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use libc::{c_int, c_ulong};
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ref};
use vmm_sys_util::{ioctl_io_nr, ioctl_ior_nr, ioctl_iow_nr};

const VHOST_VIRTIO: u32 = 0xaf;

ioctl_ior_nr!(VHOST_GET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_iow_nr!(VHOST_SET_FEATURES, VHOST_VIRTIO, 0x00, u64);
ioctl_io_nr!(VHOST_SET_OWNER, VHOST_VIRTIO, 0x01);
// The size in its number is that of the head alone.
ioctl_iow_nr!(VHOST_SET_MEM_TABLE, VHOST_VIRTIO, 0x03, [u32; 2]);
ioctl_iow_nr!(VHOST_SET_VRING_NUM, VHOST_VIRTIO, 0x10, RingState);
ioctl_iow_nr!(VHOST_SET_VRING_ADDR, VHOST_VIRTIO, 0x11, RingAddresses);
ioctl_iow_nr!(VHOST_SET_VRING_BASE, VHOST_VIRTIO, 0x12, RingState);
ioctl_iow_nr!(VHOST_SET_VRING_KICK, VHOST_VIRTIO, 0x20, RingFile);
ioctl_iow_nr!(VHOST_SET_VRING_CALL, VHOST_VIRTIO, 0x21, RingFile);
ioctl_iow_nr!(VHOST_SET_VRING_ERR, VHOST_VIRTIO, 0x22, RingFile);
ioctl_iow_nr!(VHOST_NET_SET_BACKEND, VHOST_VIRTIO, 0x30, RingFile);

/// The most regions of memory that every kernel takes.
const MAX_REGIONS: usize = 64;

/// One of the two rings of a vhost-net, in its numbering.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ring {
    Receive = 0,
    Transmit = 1,
}

/// What a ring of the guest's driver has: its size, and where its parts are in guest memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placement {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// `struct vhost_vring_state`
#[repr(C)]
struct RingState {
    ring: u32,
    number: u32,
}

/// `struct vhost_vring_addr`
#[repr(C)]
struct RingAddresses {
    ring: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// `struct vhost_vring_file`
#[repr(C)]
struct RingFile {
    ring: u32,
    fd: c_int,
}

/// `struct vhost_memory`
#[repr(C)]
struct MemoryTable {
    count: u32,
    padding: u32,
    regions: [Region; MAX_REGIONS],
}

/// `struct vhost_memory_region`
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Region {
    guest: u64,
    len: u64,
    host: u64,
    padding: u64,
}

/// The virtio features that it can do.
pub(super) fn features(vhost: &OwnedFd) -> io::Result<u64> {
    let mut features = 0;
    // SAFETY: VHOST_GET_FEATURES writes a u64, which `features` is.
    check(unsafe { ioctl_with_mut_ref(vhost, VHOST_GET_FEATURES(), &mut features) })?;
    Ok(features)
}

/// Makes it this process's: the addresses that it is told are of this process's memory.
pub(super) fn set_owner(vhost: &OwnedFd) -> io::Result<()> {
    // SAFETY: VHOST_SET_OWNER takes nothing.
    check(unsafe { ioctl(vhost, VHOST_SET_OWNER()) })
}

/// The features in force.
pub(super) fn set_features(vhost: &OwnedFd, features: u64) -> io::Result<()> {
    set(vhost, VHOST_SET_FEATURES(), &features)
}

/// All guest memory. Only rings that lie in it are touched, and what they name; the memory must stay mapped as
/// long as there is a tap ([`set_tap`]).
pub(super) fn set_memory(vhost: &OwnedFd, memory: &GuestMemoryMmap) -> io::Result<()> {
    let mut table = MemoryTable { count: 0, padding: 0, regions: [Region::default(); MAX_REGIONS] };
    for region in memory.iter() {
        let index = usize::try_from(table.count).unwrap_or(MAX_REGIONS);
        let slot = table.regions.get_mut(index);
        let host = region.get_host_address(MemoryRegionAddress(0)).map_err(io::Error::other)?;
        *slot.ok_or(io::ErrorKind::QuotaExceeded)? = Region {
            guest: region.start_addr().0,
            len: region.len(),
            host: host.expose_provenance() as u64,
            padding: 0,
        };
        table.count = table.count.saturating_add(1);
    }
    set(vhost, VHOST_SET_MEM_TABLE(), &table)
}

/// Where a ring is, from its start. It must have no tap.
pub(super) fn set_ring(
    vhost: &OwnedFd,
    ring: Ring,
    memory: &GuestMemoryMmap,
    placement: Placement,
) -> io::Result<()> {
    let Placement { size, descriptors, available, used } = placement;
    let entries = usize::from(size);
    // Sizes: virtio 1.2, 2.7.5, 2.7.6 and 2.7.8; the rings with the event index behind them.
    let host = |address, len| host_address(memory, address, len);
    let addresses = RingAddresses {
        ring: ring as u32,
        flags: 0,
        descriptors: host(descriptors, entries.saturating_mul(16))?,
        used: host(used, entries.saturating_mul(8).saturating_add(6))?,
        available: host(available, entries.saturating_mul(2).saturating_add(6))?,
        log: 0,
    };
    let state = |number| RingState { ring: ring as u32, number };
    set(vhost, VHOST_SET_VRING_NUM(), &state(size.into()))?;
    set(vhost, VHOST_SET_VRING_BASE(), &state(0))?;
    set(vhost, VHOST_SET_VRING_ADDR(), &addresses)
}

/// The eventfds of a ring: by `kick` the driver notifies, by `call` its interrupt is asked for, and by `error`
/// it is told that the driver broke the rules.
pub(super) fn set_events(
    vhost: &OwnedFd,
    ring: Ring,
    kick: BorrowedFd<'_>,
    call: BorrowedFd<'_>,
    error: BorrowedFd<'_>,
) -> io::Result<()> {
    let file = |fd: BorrowedFd<'_>| RingFile { ring: ring as u32, fd: fd.as_raw_fd() };
    set(vhost, VHOST_SET_VRING_CALL(), &file(call))?;
    set(vhost, VHOST_SET_VRING_ERR(), &file(error))?;
    set(vhost, VHOST_SET_VRING_KICK(), &file(kick))
}

/// Moves frames between a ring and `tap` from now on; without one, none any more: when that returns, guest
/// memory is not touched any more.
pub(super) fn set_tap(vhost: &OwnedFd, ring: Ring, tap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let fd = tap.map_or(-1, |tap| tap.as_raw_fd());
    set(vhost, VHOST_NET_SET_BACKEND(), &RingFile { ring: ring as u32, fd })
}

/// Where `len` bytes of guest memory are in this process's.
fn host_address(memory: &GuestMemoryMmap, address: u64, len: usize) -> io::Result<u64> {
    let slice = memory.get_slice(GuestAddress(address), len).map_err(io::Error::other)?;
    Ok(slice.ptr_guard_mut().as_ptr().expose_provenance() as u64)
}

/// An ioctl that reads `argument`, one of the types above.
fn set<T>(vhost: &OwnedFd, request: c_ulong, argument: &T) -> io::Result<()> {
    // SAFETY: each caller passes what the kernel reads for that request, as `linux/vhost.h` has it. What is
    // done to memory because of it is done while there is a tap only: see `set_memory`.
    check(unsafe { ioctl_with_ref(vhost, request, argument) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
