//! Disks, as the built-in guest drives them: what it wrote is there, for it and for the host.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use sparkler::virtio::block::{Disk, EngineKind};
use sparkler::{MemorySize, Outcome};
use sparkler_guest::exit_code;
use tempfile::NamedTempFile;

use crate::common::disks::{file, fnv1a, number, open, run_to_end, succeed, value};
use crate::common::guest;

const MIB: u64 = 1 << 20;

/// All ways to drive a queue, each with requests at random whose every byte the guest knows; and then
/// the host must see the same disk as the guest.
fn verify_in_all_ways(engine: EngineKind) {
    let file = file(4 * MIB);
    let ways = [
        "depth=1",
        "depth=16",
        "depth=16 noeventidx",
        "depth=16 noindirect",
        "depth=16 noeventidx noindirect",
        "depth=16 wait=halt",
        "depth=128 wait=poll queues=4",
        "depth=4 requests=50 noflush",
    ];
    for (seed, way) in ways.into_iter().enumerate() {
        let disk = open(file.path(), engine).queues(4).unwrap();
        let stats = disk.handle();
        let cmdline = format!("quiet test=disk requests=200 seed={seed} {way}");
        let text = succeed(guest(&cmdline).disk(disk));

        let requests = number(&text, "requests");
        let stats = stats.stats();
        let writes = stats.writes + stats.discards + stats.flushes;
        assert!(writes > requests / 4 && stats.reads > requests / 4, "{way}: {stats:?}");
        assert_eq!(stats.errors, 0, "{way}");
        assert_eq!(stats.flushes == 0, way.contains("noflush"), "{way}: {stats:?}");
        assert_eq!(number(&text, "interrupts") == 0, way.contains("poll"), "{way}: {text}");
    }
    assert_host_and_guest_agree(&file, engine);
}

fn assert_host_and_guest_agree(file: &NamedTempFile, engine: EngineKind) {
    let text = succeed(guest("quiet test=disksum").disk(open(file.path(), engine)));
    let bytes = fs::read(file.path()).unwrap();
    assert_eq!(number(&text, "bytes"), bytes.len() as u64);
    assert_eq!(value(&text, "fnv1a"), fnv1a(&bytes));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_guest_finds_what_it_wrote_by_system_calls() {
    verify_in_all_ways(EngineKind::Sync);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_guest_finds_what_it_wrote_by_the_best_engine_there_is() {
    verify_in_all_ways(EngineKind::Auto);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_guest_notices_a_single_wrong_bit() {
    let file = file(MIB);
    succeed(guest("quiet test=diskfill seed=9").disk(Disk::open(file.path()).unwrap()));
    let check = "quiet test=disk readonly filled seed=9 requests=0";
    let read_only = || Disk::open_read_only(file.path()).unwrap();
    succeed(guest(check).disk(read_only()));

    let (mut byte, at) = ([0], 777 * 512 + 333);
    file.as_file().read_exact_at(&mut byte, at).unwrap();
    file.as_file().write_all_at(&[byte[0] ^ 4], at).unwrap();
    let (outcome, text) = run_to_end(guest(check).disk(read_only()));
    assert_eq!(outcome, Outcome::Exited(exit_code::DISK_CONTENT));
    assert_eq!(number(&text, "wrong_sector"), 777);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_read_only_disk_refuses_writes_and_does_not_change() {
    let file = file(MIB);
    succeed(guest("quiet test=diskfill seed=3").disk(Disk::open(file.path()).unwrap()));
    let before = fs::read(file.path()).unwrap();
    let ways: [fn(&Path) -> Disk; 2] =
        [|path| Disk::open_read_only(path).unwrap(), |path| Disk::open(path).unwrap().read_only()];
    for open in ways {
        let disk = open(file.path());
        let stats = disk.handle();
        succeed(guest("quiet test=disk readonly filled seed=3 depth=8").disk(disk));
        assert!(stats.stats().errors > 100, "{:?}", stats.stats());
        assert_eq!(stats.stats().writes, 0);
        assert!(fs::read(file.path()).unwrap() == before);
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_disk_may_have_any_size() {
    for (bytes, sectors) in [(1, 1), (512, 1), (513, 2), (3 * 512, 3), (MIB + 100, 2049)] {
        let file = file(bytes);
        let run = |cmdline: &str| succeed(guest(cmdline).disk(Disk::open(file.path()).unwrap()));
        assert_eq!(number(&run("quiet test=diskinfo"), "capacity"), sectors);
        run("quiet test=disk requests=100 depth=4");
        run("quiet test=diskfill seed=1");
        let disk = Disk::open_read_only(file.path()).unwrap();
        succeed(guest("quiet test=disk readonly filled seed=1 requests=0").disk(disk));
        assert_eq!(file.as_file().metadata().unwrap().len(), sectors * 512, "of {bytes}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_guest_learns_what_the_disk_is() {
    let file = file(MIB);
    let disk = Disk::open(file.path()).unwrap().serial("a serial number, 20b").unwrap();
    let text = succeed(guest("quiet test=diskinfo").disk(disk.queues(3).unwrap()));
    assert_eq!(number(&text, "capacity"), MIB / 512);
    assert_eq!(number(&text, "blk_size"), 512);
    assert_eq!(number(&text, "queues"), 3);
    assert_eq!(value(&text, "serial"), "a serial number, 20b");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn four_disks_of_one_machine_are_four_disks() {
    let files = [file(MIB), file(MIB), file(2 * MIB), file(MIB)];
    for index in 0..4 {
        let disks = files.iter().map(|file| Disk::open(file.path()).unwrap());
        let cmdline = format!("quiet test=diskfill seed={index} disk={index}");
        succeed(disks.fold(guest(&cmdline), |builder, disk| builder.disk(disk)));
    }
    for (index, file) in files.iter().enumerate() {
        let disk = Disk::open_read_only(file.path()).unwrap();
        let cmdline = format!("quiet test=disk readonly filled seed={index} requests=0");
        succeed(guest(&cmdline).disk(disk));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn buffers_above_4_gib_are_reached() {
    // The guest takes rings and buffers from the last region of its memory.
    let file = file(4 * MIB);
    let memory = MemorySize::mib((3 << 10) + 64);
    let builder = guest("quiet test=disk requests=200 depth=32").memory(memory);
    succeed(builder.disk(Disk::open(file.path()).unwrap()));
}
