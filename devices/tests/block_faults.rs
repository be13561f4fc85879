//! A disk whose storage is slow, out of order, or fails: nothing is reported done before it is, every
//! failure is the guest's I/O error, and the disk works again when its storage does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.
#![allow(clippy::cast_possible_truncation)] // Of numbers that the test itself chose.

mod block_common;

use std::io;

use block_common::*;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const EBADF: i32 = 9;

fn storage() -> Storage {
    Storage::new((0..64 * 512u32).map(|at| (at / 512 + at % 13) as u8).collect())
}

fn writes(guest: &mut Guest, sectors: &[u64]) -> Vec<u16> {
    let write = |&sector| guest.offer(0, &[&header(OUT, sector), &[sector as u8; 512]], &[1]);
    let heads = sectors.iter().map(write).collect();
    guest.kick(0);
    heads
}

#[test]
fn requests_end_in_the_order_of_the_storage() {
    let storage = storage();
    let mut guest = Guest::new(storage.disk());
    storage.hold("write");
    let heads = writes(&mut guest, &[0, 1, 2, 3]);
    storage.wait_for_held(4);
    assert_eq!(guest.poll(0), None, "nothing has ended yet");
    // Held back are now 0, 1, 2, 3; end 2, then 0, then 3, then 1.
    for (release, expected) in [(2, 2), (0, 0), (1, 3), (0, 1)] {
        storage.release(release);
        let answer = guest.wait(0);
        assert_eq!((answer.head, answer.status), (heads[expected], OK));
        assert_eq!(guest.poll(0), None);
    }
}

#[test]
fn a_flush_ends_after_a_sync_that_began_after_it() {
    let storage = storage();
    let mut guest = Guest::new(storage.disk());
    storage.hold("sync");
    let flush = |guest: &mut Guest| {
        let head = guest.offer(0, &[&header(FLUSH, 0)], &[1]);
        guest.kick(0);
        head
    };
    assert_eq!(guest.write(0, &[1; 512]), OK);
    let first = flush(&mut guest);
    storage.wait_for_held(1);
    // These come while a sync is in progress that need not cover what was written since.
    assert_eq!(guest.write(1, &[2; 512]), OK);
    let (second, third) = (flush(&mut guest), flush(&mut guest));
    assert_eq!(guest.write(2, &[3; 512]), OK);
    assert_eq!(guest.poll(0), None);
    assert_eq!(storage.begun().iter().filter(|begun| *begun == "sync").count(), 1);
    storage.release(0);
    assert_eq!(guest.wait(0).head, first);
    storage.wait_for_held(1);
    assert_eq!(guest.poll(0), None);
    assert_eq!(storage.begun(), ["sync"], "one sync serves all that wait");
    storage.release(0);
    let both = [guest.wait(0), guest.wait(0)];
    assert_eq!([both[0].head, both[1].head], [second, third]);
    assert!(both.iter().all(|answer| answer.status == OK));
}

#[test]
fn flushes_that_share_a_failed_sync_fail_together() {
    let storage = storage();
    let mut guest = Guest::new(storage.disk());
    storage.fail(|begun| (begun == "sync").then(|| io::Error::from_raw_os_error(EIO)));
    for _ in 0..3 {
        guest.offer(0, &[&header(FLUSH, 0)], &[1]);
    }
    guest.kick(0);
    for _ in 0..3 {
        assert_eq!(guest.wait(0).status, IOERR);
    }
    storage.recover();
    assert_eq!(guest.flush(), OK);
}

#[test]
fn without_flushes_a_write_ends_only_when_it_is_durable() {
    let storage = storage();
    let mut guest = Guest::with_features(storage.disk(), F_DISCARD | F_WRITE_ZEROES);
    storage.hold("sync");
    for (kind, data) in
        [(OUT, &[7; 512][..]), (DISCARD, &range(&(0, 1, 0))), (WRITE_ZEROES, &range(&(0, 1, 0)))]
    {
        guest.offer(0, &[&header(kind, 0), data], &[1]);
        guest.kick(0);
        storage.wait_for_held(1);
        assert_eq!(guest.poll(0), None, "durable only after the sync");
        storage.release(0);
        assert_eq!(guest.wait(0).status, OK);
    }
    assert_eq!(guest.read(0, 512).status, OK, "a read needs no sync");
    let begun =
        ["write 0 512", "sync", "discard 0 512", "sync", "zero 0 512", "sync", "read 0 512"];
    assert_eq!(storage.begun(), begun);
}

#[test]
fn a_write_through_whose_sync_fails_has_failed() {
    let storage = storage();
    let mut guest = Guest::with_features(storage.disk(), 0);
    storage.fail(|begun| (begun == "sync").then(|| io::Error::from_raw_os_error(ENOSPC)));
    assert_eq!(guest.write(0, &[1; 512]), IOERR);
    storage.recover();
    assert_eq!(guest.write(0, &[1; 512]), OK);
}

#[test]
fn the_driver_switches_between_write_back_and_write_through() {
    let storage = storage();
    let mut guest = Guest::with_features(storage.disk(), F_FLUSH | F_CONFIG_WCE);
    let begun_by_write = |guest: &mut Guest| {
        assert_eq!(guest.write(0, &[1; 512]), OK);
        storage.begun()
    };
    assert_eq!(guest.config(32), [1]);
    assert_eq!(begun_by_write(&mut guest), ["write 0 512"]);
    guest.set_config(32, &[0]);
    assert_eq!(guest.config(32), [0]);
    assert_eq!(begun_by_write(&mut guest), ["write 0 512", "sync"]);
    guest.set_config(32, &[1]);
    assert_eq!(begun_by_write(&mut guest), ["write 0 512"]);
    guest.set_config(32, &[0]);
    guest.driver.reset();
    assert_eq!(guest.config(32), [1], "a reset forgets the choice");
}

#[test]
fn writeback_without_its_feature_has_no_effect() {
    let storage = storage();
    let mut guest = Guest::with_features(storage.disk(), F_FLUSH);
    guest.set_config(32, &[0]);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(storage.begun(), ["write 0 512"]);
}

#[test]
fn a_choice_without_flushes_begins_as_write_through() {
    let storage = storage();
    let mut guest = Guest::with_features(storage.disk(), F_CONFIG_WCE);
    assert_eq!(guest.write(0, &[1; 512]), OK);
    assert_eq!(storage.begun(), ["write 0 512", "sync"]);
    assert_eq!(guest.config(32), [0]);
}

#[test]
fn transfers_that_stop_short_go_on() {
    let storage = storage();
    let before = storage.bytes();
    storage.at_most(100);
    let mut guest = Guest::new(storage.disk());
    let answer = guest.request(&[&header(IN, 3)], &[700, 324, 1]);
    assert_eq!((answer.status, &answer.data[..]), (OK, &before[3 * 512..5 * 512]));
    let data: Vec<u8> = (0..1024u32).map(|at| (at % 249) as u8).collect();
    let answer = guest.request(&[&header(OUT, 60), &data[..5], &data[5..]], &[1]);
    assert_eq!(answer.status, OK);
    assert_eq!(storage.bytes()[60 * 512..62 * 512], data);
    assert_eq!(storage.bytes()[..60 * 512], before[..60 * 512]);
}

#[test]
fn an_interrupted_operation_is_tried_again() {
    let storage = storage();
    let mut guest = Guest::new(storage.disk());
    let mut times = 3;
    storage.fail(move |_| {
        times -= 1;
        (times >= 0).then(|| io::ErrorKind::Interrupted.into())
    });
    assert_eq!(guest.write(1, &[9; 512]), OK);
    assert_eq!(storage.bytes()[512..1024], [9; 512]);
    assert_eq!(storage.begun(), ["write 512 512"; 4]);
    let mut odd = false;
    storage.fail(move |_| {
        odd = !odd;
        odd.then(|| io::ErrorKind::Interrupted.into())
    });
    assert_eq!((guest.flush(), guest.ranges(WRITE_ZEROES, &[(1, 1, 0)])), (OK, OK));
    assert_eq!(storage.begun(), ["sync", "sync", "zero 512 512", "zero 512 512"]);
    assert_eq!(storage.bytes()[512..1024], [0; 512]);
}

#[test]
fn a_reset_does_not_wait_for_the_whole_of_a_large_request() {
    let storage = Storage::new(vec![3; 8 << 20]);
    let mut guest = Guest::new(storage.disk());
    storage.at_most(1);
    // A slow disk: all of it would take hours.
    storage.fail(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        None
    });
    guest.offer(0, &[&header(IN, 0)], &[8 << 20, 1]);
    guest.kick(0);
    while storage.begun().is_empty() {
        std::thread::yield_now();
    }
    guest.restart();
    storage.recover();
    storage.at_most(512);
    assert_eq!(guest.read(0, 512).status, OK);
}

#[test]
fn a_slow_disk_is_given_only_so_much_at_once() {
    let storage = Storage::new(vec![3; 1 << 20]);
    let mut guest = Guest::new(storage.disk());
    storage.hold("read");
    for _ in 0..40 {
        guest.offer(0, &[&header(IN, 0)], &[1 << 20, 1]);
    }
    guest.kick(0);
    storage.wait_for_held(32);
    let mut begun = storage.begun().len();
    for ended in 1..=40 {
        assert!(begun < 32 + ended, "{begun} of 1 MiB each, of which {ended} may have ended");
        storage.release(0);
        assert_eq!(guest.wait(0).status, OK);
        storage.wait_for_held(32.min(40 - ended));
        begun += storage.begun().len();
    }
}

#[test]
fn every_failure_is_an_io_error_and_passes() {
    let storage = storage();
    let disk = storage.disk();
    let handle = disk.handle();
    let mut guest = Guest::new(disk);
    for errno in [ENOSPC, EIO, EBADF] {
        storage.fail(move |_| Some(io::Error::from_raw_os_error(errno)));
        let answer = guest.read(0, 512);
        assert_eq!((answer.status, answer.used), (IOERR, 0));
        assert_eq!(guest.write(0, &[1; 512]), IOERR);
        assert_eq!(guest.flush(), IOERR);
        assert_eq!(guest.ranges(DISCARD, &[(0, 1, 0)]), IOERR);
        assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 1, 0)]), IOERR);
        storage.recover();
        assert_eq!(guest.read(0, 512).status, OK);
        assert_eq!(guest.write(0, &[1; 512]), OK);
        assert_eq!(guest.flush(), OK);
    }
    assert_eq!(handle.stats().errors, 15);
    assert!(!guest.driver.needs_reset());
}

#[test]
fn a_read_that_fails_halfway_tells_how_far_it_came() {
    let storage = storage();
    storage.at_most(512);
    let mut guest = Guest::new(storage.disk());
    storage.fail(|begun| begun.starts_with("read 1024").then(|| io::Error::from_raw_os_error(EIO)));
    let answer = guest.read(0, 2048);
    assert_eq!((answer.status, answer.used), (IOERR, 1024));
    assert_eq!(answer.data[..1024], storage.bytes()[..1024]);
    assert_eq!(answer.data[1024..], [UNTOUCHED; 1024]);
}

#[test]
fn a_write_that_gets_nowhere_is_an_error_not_a_loop() {
    let storage = storage();
    storage.at_most(0);
    let mut guest = Guest::new(storage.disk());
    assert_eq!(guest.write(0, &[1; 512]), IOERR);
    assert_eq!(guest.read(0, 512).status, IOERR);
}

#[test]
fn a_reset_waits_for_what_is_in_flight() {
    let storage = storage();
    let mut guest = Guest::new(storage.disk());
    for round in 0..50 {
        storage.hold("write");
        writes(&mut guest, &[0, 1, 2, 3, 4, 5, 6, 7]);
        storage.wait_for_held(8);
        guest.restart();
        assert_eq!(storage.begun().last().map(String::as_str), Some("drain"), "round {round}");
        assert_eq!(guest.read(1, 512).data, [1; 512]);
    }
}

#[test]
fn an_engine_that_cannot_be_made_needs_a_reset_and_is_tried_again() {
    use sparkler_devices::virtio::block::Disk;
    let storage = storage();
    let mut tries = 0;
    let mut inner = storage.engine();
    let disk = Disk::with_engine(4096, move || {
        tries += 1;
        if tries == 1 { Err(io::Error::from_raw_os_error(EIO)) } else { inner() }
    });
    let mut guest = Guest::new(disk.unwrap());
    guest.driver.wait_for_needs_reset();
    guest.restart();
    assert_eq!(guest.read(0, 512).status, OK);
}

#[test]
fn large_transfers_are_cut_up() {
    let storage = Storage::new(vec![3; 5 << 19]);
    let mut guest = Guest::new(storage.disk());
    let answer = guest.read(0, 5 << 19);
    assert_eq!((answer.status, answer.used), (OK, (5 << 19) + 1));
    assert!(answer.data.iter().all(|&byte| byte == 3));
    let expected = ["read 0 1048576", "read 1048576 1048576", "read 2097152 524288"];
    assert_eq!(storage.begun(), expected);
}
