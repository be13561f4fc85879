//! Guest memory in huge pages, from a pool that this test makes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};
use sparkler::{HugePageSize, MemoryBacking, Outcome, ResetAction, Vm};

use crate::common::{Captured, guest};

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn number(name: &str) -> u64 {
    fs::read_to_string(Path::new(POOL).join(name)).unwrap().trim().parse().unwrap()
}

/// How many the pool can still give.
fn free() -> u64 {
    number("free_hugepages") - number("resv_hugepages")
}

/// There is one pool for all tests.
static POOL_IN_USE: Mutex<()> = Mutex::new(());

/// Makes the pool larger, until it is dropped.
struct Room(u64);

impl Room {
    fn make(pages: u64) -> Self {
        let before = number("nr_hugepages");
        let room = Self(before);
        fs::write(Path::new(POOL).join("nr_hugepages"), (before + pages).to_string()).unwrap();
        assert!(free() >= pages, "the host has no {pages} huge pages of 2 MiB to spare");
        room
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        let _ = fs::write(Path::new(POOL).join("nr_hugepages"), self.0.to_string());
    }
}

#[test]
#[ignore = "needs /dev/kvm and root"]
fn they_are_set_aside_used_and_given_back() {
    let _one = POOL_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let _room = Room::make(8);
    let before = free();
    for (backing, prefault) in [
        (MemoryBacking::private(), false),
        (MemoryBacking::private(), true),
        (MemoryBacking::memfd(), false),
        (MemoryBacking::memfd(), true),
    ] {
        let backing = backing.huge_pages(HugePageSize::TwoMib).prefault(prefault);
        let guest = guest("test=memory expect_memory=16777216").memory_backing(backing);
        let vm = guest.build().unwrap();
        assert_eq!(before - free(), 8);
        let running = vm.start().unwrap();
        assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
        let resident = running.stats().memory_resident;
        assert!(resident.is_multiple_of(2 << 20), "{resident}");
        assert_eq!(resident == 16 << 20, prefault, "{resident}");
        drop(running);
        assert_eq!(free(), before);
    }
}

/// The first huge page of the last 2 MiB of guest memory, where the guest has nothing, as others see it: by
/// another mapping of its file, or in this process's own memory.
enum Seen {
    Shared(MmapRegion),
    Private(fs::File, u64),
}

impl Seen {
    const OFFSET: u64 = 14 << 20;

    fn of(vm: &Vm) -> Self {
        if let Some(fd) = vm.memory_fd() {
            let file = fs::File::from(fd.try_clone_to_owned().unwrap());
            let at = FileOffset::new(file, Self::OFFSET);
            return Self::Shared(MmapRegion::from_file(at, 2 << 20).unwrap());
        }
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let mut guests = maps.lines().filter(|line| line.contains("anon_hugepage"));
        let start = guests.next().unwrap().split('-').next().unwrap();
        assert!(guests.next().is_none());
        let memory = fs::File::options().read(true).write(true).open("/proc/self/mem").unwrap();
        Self::Private(memory, u64::from_str_radix(start, 16).unwrap() + Self::OFFSET)
    }

    fn write(&self, bytes: &[u8]) {
        match self {
            Self::Shared(mapping) => mapping.as_volatile_slice().write_slice(bytes, 0).unwrap(),
            Self::Private(memory, at) => memory.write_all_at(bytes, *at).unwrap(),
        }
    }

    fn read(&self, bytes: &mut [u8]) {
        match self {
            Self::Shared(mapping) => mapping.as_volatile_slice().read_slice(bytes, 0).unwrap(),
            Self::Private(memory, at) => memory.read_exact_at(bytes, *at).unwrap(),
        }
    }
}

fn wait_for(captured: &Captured, what: &str, times: usize) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while captured.text().matches(what).count() < times {
        assert!(Instant::now() < deadline, "{times} times {what:?} in {}", captured.text());
        thread::sleep(Duration::from_millis(1)); // Not to take the processor from the guest.
    }
}

/// Were they given back for a moment, another machine could take them, and a guest that has them no more
/// would end this process.
#[test]
#[ignore = "needs /dev/kvm and root"]
fn a_restart_keeps_them_and_makes_them_zeros() {
    let _one = POOL_IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
    let _room = Room::make(8);
    let pool = || (number("free_hugepages"), number("resv_hugepages"));
    for backing in [MemoryBacking::private(), MemoryBacking::memfd()] {
        let captured = Captured::default();
        let vm = guest("test=spin")
            .memory_backing(backing.huge_pages(HugePageSize::TwoMib))
            .on_reset(ResetAction::Restart)
            .console(captured.console())
            .build()
            .unwrap();
        let last = Seen::of(&vm);
        let running = vm.start().unwrap();
        for round in 1..=3 {
            wait_for(&captured, "spinning", round);
            last.write(&[0x5a; 8192]);
            let before = pool();
            assert!(before.0 > 0, "not all is touched");
            running.handle().reset().unwrap();
            wait_for(&captured, "spinning", round + 1);
            assert_eq!(pool(), before, "free, and of these reserved");
            let mut now = [1; 8192];
            last.read(&mut now);
            assert_eq!(now, [0; 8192]);
        }
        running.handle().stop();
        assert_eq!(running.wait(), Ok(Outcome::Stopped));
    }
}
