//! What is behind guest memory, and what lies beside it, seen from the host and from the guest.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sparkler::{
    BuildError, HugePageSize, MemoryBacking, MemoryError, MemorySize, Outcome, SharedRegion,
    VmBuilder,
};

use crate::common::disks::{fnv1a, succeed, value};
use crate::common::guest;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// A guest that writes and reads its memory, which it must find to be 16 MiB.
fn memory_guest() -> VmBuilder {
    guest("test=memory expect_memory=16777216")
}

fn refused(builder: VmBuilder) -> MemoryError {
    match builder.build().unwrap_err() {
        BuildError::GuestMemory(error) => error,
        other => panic!("{other}"),
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn private_memory_with_and_without_transparent_huge_pages() {
    for on in [true, false] {
        let backing = MemoryBacking::private().transparent_huge_pages(on);
        succeed(memory_guest().memory_backing(backing));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_is_taken_when_it_is_touched_or_at_once() {
    let resident = |backing| {
        let vm = guest("").memory(MemorySize::mib(64)).memory_backing(backing).build().unwrap();
        let running = vm.start().unwrap();
        assert_eq!(running.wait().unwrap(), Outcome::Exited(0));
        running.stats().memory_resident
    };
    let lazy = resident(MemoryBacking::private().transparent_huge_pages(false));
    assert!(0 < lazy && lazy < 4 * MIB, "{lazy}");
    assert_eq!(resident(MemoryBacking::private().prefault(true)), 64 * MIB);
    assert_eq!(resident(MemoryBacking::memfd().prefault(true)), 64 * MIB);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_memfd_is_guest_memory_and_cannot_change_its_size() {
    let vm = memory_guest().memory_backing(MemoryBacking::memfd()).build().unwrap();
    let file = File::from(vm.memory_fd().unwrap().try_clone_to_owned().unwrap());
    assert_eq!(file.metadata().unwrap().len(), 16 * MIB);
    // The built-in guest lies at 1 MiB.
    let mut loaded = [0; 64];
    file.read_exact_at(&mut loaded, MIB).unwrap();
    assert_ne!(loaded, [0; 64]);
    for size in [0, 15 * MIB, 17 * MIB] {
        file.set_len(size).unwrap_err();
    }
    assert_eq!(vm.start().unwrap().wait().unwrap(), Outcome::Exited(0));
    assert!(guest("").build().unwrap().memory_fd().is_none());
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_file_from_outside_is_guest_memory_from_its_offset_on() {
    let file = tempfile::tempfile().unwrap();
    let full = vec![0xa5; 4096];
    for page in 0..(17 * MIB / 4096) {
        file.write_all_at(&full, page * 4096).unwrap();
    }
    let fd = || OwnedFd::from(file.try_clone().unwrap());
    let backing = MemoryBacking::file(fd(), MIB);
    let vm = memory_guest().memory_backing(backing).build().unwrap();
    assert_eq!(vm.start().unwrap().wait().unwrap(), Outcome::Exited(0));
    let mut bytes = vec![0; 2 << 20];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let (before, of_guest) = bytes.split_at(1 << 20);
    assert!(before.iter().all(|&byte| byte == 0xa5), "what lies before is not ours");
    // The interrupt table at 0x520 is never written: the old content is gone.
    assert_eq!(of_guest[0x530..0x600], [0; 0xd0]);

    let error = refused(memory_guest().memory_backing(MemoryBacking::file(fd(), 2 * MIB)));
    assert!(
        matches!(error, MemoryError::FileTooSmall { size, needed, .. } if (size, needed) == (17 * MIB, 18 * MIB)),
        "{error}"
    );
    let error = refused(memory_guest().memory_backing(MemoryBacking::file(fd(), 100)));
    assert!(matches!(error, MemoryError::FileOffset { offset: 100, .. }), "{error}");
    let read_only = File::open(std::env::current_exe().unwrap()).unwrap();
    let error = refused(memory_guest().memory_backing(MemoryBacking::file(read_only.into(), 0)));
    assert!(matches!(error, MemoryError::FileKind), "{error}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_has_holes_where_it_should() {
    let builder = |expected: u64| guest(&format!("test=memory expect_memory={expected}"));
    let three = builder(16 * MIB + 5 * GIB)
        .memory_region(16 * GIB, MemorySize::gib(4))
        .memory_region(8 * GIB, MemorySize::gib(1));
    let text = succeed(three);
    // Below 1 MiB, above it, and the two; of each the first page and the last.
    assert_eq!(value(&text, "regions"), "4");
    succeed(
        builder(5 * GIB + 4096)
            .memory(MemorySize::gib(4))
            .memory_region(6 * GIB, MemorySize::bytes(GIB + 4096)),
    );

    let error = refused(guest("").memory_region(3 * GIB, MemorySize::mib(1)));
    assert!(matches!(error, MemoryError::Place { .. }), "{error}");
    let main = guest("").memory(MemorySize::gib(8)).memory_region(8 * GIB, MemorySize::mib(1));
    assert!(matches!(refused(main), MemoryError::Overlap { .. }));
    let far = guest("").memory_region((1 << 52) - 4096, MemorySize::kib(4));
    assert!(matches!(refused(far), MemoryError::Place { .. }));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_shared_region_can_be_read_by_two_guests_and_written_by_none() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let content: Vec<u8> = (0..100_000u32).map(|n| n.wrapping_mul(n).to_be_bytes()[2]).collect();
    file.write_all(&content).unwrap();
    let size = content.len().next_multiple_of(4096);
    let mut padded = content.clone();
    padded.resize(size, 0);
    let cmdline = format!("test=shared at={} bytes={size}", 8 * GIB);
    for _ in 0..2 {
        let region = SharedRegion::open(file.path()).unwrap();
        assert_eq!(region.size(), MemorySize::bytes(size as u64));
        let captured = common::Captured::default();
        let builder = guest(&cmdline).shared_region(8 * GIB, region).console(captured.console());
        let running = builder.build().unwrap().start().unwrap();
        assert_eq!(running.wait().unwrap(), Outcome::Exited(0), "{}", captured.text());
        assert_eq!(value(&captured.text(), "fnv1a"), fnv1a(&padded));
        assert_eq!(running.stats().shared_region_writes_dropped, size as u64 / 4096);
    }
    assert_eq!(fs::read(file.path()).unwrap(), content);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_shared_region_that_cannot_be_read_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().set_len(MIB).unwrap();
    let to_write = File::options().write(true).open(file.path()).unwrap();
    let region = SharedRegion::fd(to_write.into()).unwrap();
    let error = refused(guest("").shared_region(8 * GIB, region));
    assert!(matches!(error, MemoryError::MapShared { start, .. } if start == 8 * GIB), "{error}");
    assert_eq!(error.to_string(), "cannot map the shared region of 1 MiB at 0x200000000");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_shared_region_that_is_cut_ends_its_guest_only() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(MIB).unwrap();
    let region = SharedRegion::fd(file.try_clone().unwrap().into()).unwrap();
    let cmdline = format!("test=shared at={} bytes={MIB}", 8 * GIB);
    let vm = guest(&cmdline).shared_region(8 * GIB, region).build().unwrap();
    file.set_len(0).unwrap();
    let outcome = vm.start().unwrap().wait().unwrap();
    assert!(matches!(outcome, Outcome::Crashed(_)), "{outcome}");
}

/// How many huge pages the host's pool can still give; none if it has no pool of this size.
fn free_huge_pages(size: HugePageSize) -> Option<u64> {
    let pool = format!("/sys/kernel/mm/hugepages/hugepages-{}kB", size.as_bytes() >> 10);
    let number = |name| {
        let text = fs::read_to_string(Path::new(&pool).join(name)).ok()?;
        Some(text.trim().parse::<u64>().unwrap())
    };
    Some(number("free_hugepages")? - number("resv_hugepages")?)
}

#[test]
#[ignore = "needs /dev/kvm"]
fn huge_pages_that_are_not_there_are_named() {
    use HugePageSize::{OneGib, TwoMib};
    for (page, memfd) in [(TwoMib, false), (TwoMib, true), (OneGib, false), (OneGib, true)] {
        let backing = if memfd { MemoryBacking::memfd() } else { MemoryBacking::private() };
        let free = free_huge_pages(page);
        let size = MemorySize::bytes(page.as_bytes() * (free.unwrap_or(0) + 100));
        let error = refused(guest("").memory(size).memory_backing(backing.huge_pages(page)));
        let text = error.to_string();
        match (error, free) {
            (MemoryError::HugePages { size, needed, free: said, .. }, Some(free)) => {
                assert_eq!((size, needed, said), (page, free + 100, free));
                let advice = if page == TwoMib { "vm.nr_hugepages=" } else { "hugepagesz=1G" };
                assert!(text.contains(advice), "{text}");
            }
            (MemoryError::HugePageSize { size, .. }, None) => assert_eq!(size, page),
            (error, _) => panic!("{error}"),
        }
    }
    let backing = MemoryBacking::private().huge_pages(TwoMib);
    let error = refused(guest("").memory(MemorySize::mib(5)).memory_backing(backing));
    assert!(matches!(error, MemoryError::Alignment { .. }), "{error}");
}
