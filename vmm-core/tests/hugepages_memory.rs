//! Guest memory in huge pages, from a pool that this test makes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::path::Path;

use sparkler::{HugePageSize, MemoryBacking, Outcome};

use crate::common::guest;

const POOL: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

fn number(name: &str) -> u64 {
    fs::read_to_string(Path::new(POOL).join(name)).unwrap().trim().parse().unwrap()
}

/// How many the pool can still give.
fn free() -> u64 {
    number("free_hugepages") - number("resv_hugepages")
}

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
