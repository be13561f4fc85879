//! Memory that devices share with us, and their registers: every access is volatile and in bounds.

use core::ptr;
use core::sync::atomic::{AtomicU16, Ordering};

use crate::bootinfo::BootInfo;
use crate::exit_code::VIRTIO_MEMORY;
use crate::paging::{self, PAGE_SIZE};

/// Integers, of which any bytes make one.
pub(crate) trait Integer: Copy {}
impl Integer for u8 {}
impl Integer for u16 {}
impl Integer for u32 {}
impl Integer for u64 {}

/// A range of mapped memory that no Rust reference points to.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    start: u64,
    length: u64,
}

impl Memory {
    /// The registers of a device.
    pub(crate) fn registers(start: u64, length: u64) -> Self {
        paging::device(start, length);
        Self { start, length }
    }

    pub(crate) fn address(&self) -> u64 {
        self.start
    }

    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn part(&self, offset: u64, length: u64) -> Self {
        assert!(offset <= self.length && length <= self.length - offset);
        Self { start: self.start + offset, length }
    }

    pub(crate) fn read<T: Integer>(&self, offset: u64) -> T {
        // SAFETY: mapped, by `part` in bounds, and any bytes are a `T`.
        unsafe { ptr::read_volatile(self.part(offset, size_of::<T>() as u64).start as *const T) }
    }

    pub(crate) fn write<T: Integer>(&self, offset: u64, value: T) {
        // SAFETY: as in `read`; nothing of the guest's own lies there.
        unsafe {
            ptr::write_volatile(self.part(offset, size_of::<T>() as u64).start as *mut T, value)
        }
    }

    /// Reads what a device writes at the same time; what it wrote before is seen afterwards.
    pub(crate) fn load(&self, offset: u64) -> u16 {
        self.atomic(offset).load(Ordering::Acquire)
    }

    /// Writes what a device reads at the same time, after all that was written before.
    pub(crate) fn store(&self, offset: u64, value: u16) {
        self.atomic(offset).store(value, Ordering::Release);
    }

    pub(crate) fn fill(&self, byte: u8) {
        // SAFETY: the whole range is mapped, and nothing of the guest's own lies there.
        unsafe { ptr::write_bytes(self.start as *mut u8, byte, self.length as usize) }
    }

    /// Copies all of `from`, which must not overlap this, to this place.
    pub(crate) fn copy_from(&self, offset: u64, from: Memory) {
        let to = self.part(offset, from.length).start as *mut u8;
        // SAFETY: both ranges are mapped and in bounds, and nothing of the guest's own lies there.
        unsafe { ptr::copy_nonoverlapping(from.start as *const u8, to, from.length as usize) }
    }

    fn atomic(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: mapped and in bounds; all offsets in use are even.
        unsafe { AtomicU16::from_ptr(self.part(offset, 2).start as *mut u16) }
    }
}

/// The last region of usable memory, as far as it is behind the guest itself, given out piece by piece.
pub(crate) struct Arena(Memory);

impl Arena {
    /// To be called once.
    pub(crate) fn new(boot: &BootInfo) -> Result<Self, u8> {
        let region = boot.usable().iter().max_by_key(|region| region.start).ok_or(VIRTIO_MEMORY)?;
        let start = region.start.max(paging::image().end).next_multiple_of(PAGE_SIZE);
        let end = region.start.saturating_add(region.size) & !(PAGE_SIZE - 1);
        let length = end.checked_sub(start).ok_or(VIRTIO_MEMORY)?;
        paging::memory(start, length);
        Ok(Self(Memory { start, length }))
    }

    /// The next `length` bytes, rounded up to whole pages, all zero.
    pub(crate) fn take(&mut self, length: u64) -> Result<Memory, u8> {
        let pages = length.next_multiple_of(PAGE_SIZE);
        if pages > self.0.length {
            return Err(VIRTIO_MEMORY);
        }
        let taken = self.0.part(0, length);
        self.0 = self.0.part(pages, self.0.length - pages);
        taken.fill(0);
        Ok(taken)
    }

    pub(crate) fn left(&self) -> u64 {
        self.0.length
    }
}
