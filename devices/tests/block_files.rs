//! Files as disks: what can be one, who else may use it, odd sizes, resize, direct I/O, and files that
//! change underneath.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.
#![allow(clippy::cast_possible_truncation)] // Of numbers that the test itself chose.

mod block_common;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use block_common::*;
use sparkler_devices::virtio::block::{Disk, DiskError, EngineKind, RateLimit};
use sparkler_devices::virtio::mock::SEAM;
use vm_memory::{Bytes, GuestAddress};

const O_APPEND: i32 = 0o2000;
const O_PATH: i32 = 0o10_000_000;

const ENGINES: [EngineKind; 2] = [EngineKind::Sync, EngineKind::Auto];

/// Bytes that are not the same in any two sectors.
fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at % 251) as u8).collect()
}

#[test]
fn what_is_no_disk_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let pipe = path("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    File::create(path("empty")).unwrap();
    let error = |path: &Path| {
        let error = Disk::open(path).unwrap_err();
        assert!(error.to_string().contains(&path.display().to_string()), "{error}");
        error
    };
    assert!(matches!(error(&path("missing")), DiskError::Open { .. }));
    assert!(matches!(error(directory.path()), DiskError::Open { .. }));
    assert!(matches!(error(&path("empty")), DiskError::Empty { .. }));
    assert!(matches!(error(&pipe), DiskError::Kind { .. }));
    assert!(matches!(error(Path::new("/dev/null")), DiskError::Kind { .. }));
    for no_disk in [&pipe, directory.path()] {
        let error = Disk::open_read_only(no_disk).unwrap_err();
        assert!(matches!(error, DiskError::Kind { .. }), "{error}");
    }
}

#[test]
fn settings_have_limits() {
    let image = Image::of_size(512);
    let error = image.disk().serial("123456789012345678901").unwrap_err();
    assert!(matches!(error, DiskError::Serial { .. }));
    assert!(matches!(image.disk().serial(""), Err(DiskError::Serial { .. })));
    assert!(matches!(image.disk().serial("tab\t"), Err(DiskError::Serial { .. })));
    assert!(matches!(image.disk().serial("größe"), Err(DiskError::Serial { .. })));
    assert!(image.disk().serial("12345678901234567890").is_ok());
    assert!(matches!(image.disk().queues(0), Err(DiskError::Queues { .. })));
    assert!(matches!(image.disk().queues(17), Err(DiskError::Queues { .. })));
    let guest = Guest::unstarted(image.disk().queues(16).unwrap());
    assert_eq!(guest.driver.offered() & F_MQ, F_MQ);
    assert_eq!(guest.config(34), 16u16.to_le_bytes());
}

#[test]
fn a_file_that_may_not_be_written_can_be_read() {
    let image = Image::new(&bytes(1024));
    std::fs::set_permissions(image.path(), PermissionsExt::from_mode(0o444)).unwrap();
    let mut guest = Guest::new(Disk::open_read_only(image.path()).unwrap());
    assert_eq!(guest.read(0, 1024).data, bytes(1024));
}

#[test]
fn one_writer_or_many_readers() {
    let image = Image::of_size(4096);
    let in_use = |result: Result<Disk, DiskError>| matches!(result, Err(DiskError::InUse { .. }));
    let writer = image.disk();
    assert!(in_use(Disk::open(image.path())));
    assert!(in_use(Disk::open_read_only(image.path())));
    drop(writer);
    let readers = [(); 3].map(|()| Disk::open_read_only(image.path()).unwrap());
    assert!(in_use(Disk::open(image.path())));
    drop(readers);
    // The device holds the lock as the disk did, and lets go of it.
    let guest = Guest::new(image.disk());
    assert!(in_use(Disk::open(image.path())));
    drop(guest);
    let disk = image.disk();
    // Nor does a handle keep it.
    let _handle = disk.handle();
    drop(disk);
    image.disk();
}

#[test]
fn an_owned_descriptor_is_locked_like_a_path() {
    let image = Image::new(&bytes(4096));
    let first = image.file();
    let second = OwnedFd::from(first.try_clone().unwrap());
    let disk = Disk::from_fd(first.into()).unwrap();
    let error = Disk::from_fd(second).unwrap_err();
    assert!(matches!(error, DiskError::InUse { .. }), "duplicates do not share the lock: {error}");
    let mut guest = Guest::new(disk);
    assert_eq!(guest.write(7, &[1; 512]), OK);
    assert_eq!(image.content()[7 * 512..], [1; 512]);
}

#[test]
fn a_descriptor_can_do_what_it_was_opened_for() {
    let image = Image::new(&bytes(4096));
    let open =
        |options: &mut std::fs::OpenOptions| OwnedFd::from(options.open(image.path()).unwrap());
    let mut guest = Guest::new(Disk::from_fd(open(File::options().read(true))).unwrap());
    assert_eq!(guest.driver.offered() & F_RO, F_RO);
    assert_eq!((guest.write(0, &[1; 512]), guest.read(0, 512).data), (IOERR, bytes(512)));
    let path_only = File::options().read(true).custom_flags(O_PATH).clone();
    for mut options in [File::options().write(true).clone(), path_only] {
        let error = Disk::from_fd(open(&mut options)).unwrap_err();
        assert!(matches!(error, DiskError::Mode { .. }), "{error}");
    }
    drop(guest);
    // Append mode would put all writes at the end; it is not taken over.
    let append = open(File::options().read(true).write(true).custom_flags(O_APPEND));
    let mut guest = Guest::new(Disk::from_fd(append).unwrap());
    assert_eq!(guest.write(2, &[9; 512]), OK);
    assert_eq!((image.content().len(), image.content()[1024]), (4096, 9));
}

#[test]
fn a_disk_of_one_sector() {
    for kind in ENGINES {
        let image = Image::new(&bytes(512));
        let mut guest = Guest::new(image.disk().engine(kind).unwrap());
        assert_eq!(guest.capacity(), 1);
        assert_eq!(guest.read(0, 512).data, bytes(512));
        assert_eq!(guest.write(0, &[3; 512]), OK);
        assert_eq!((guest.write(1, &[3; 512]), guest.read(1, 512).status), (IOERR, IOERR));
        assert_eq!(image.content(), [3; 512]);
    }
}

#[test]
fn a_last_sector_that_is_not_full_reads_zeroes_and_grows_when_written() {
    for (size, kind) in [1, 511, 513, 4097, 10_000].into_iter().zip(ENGINES.into_iter().cycle()) {
        let image = Image::new(&bytes(size));
        let mut guest = Guest::new(image.disk().engine(kind).unwrap());
        let sectors = size.div_ceil(512);
        assert_eq!(guest.capacity(), sectors as u64);
        let mut model = bytes(size);
        model.resize(sectors * 512, 0);
        let answer = guest.read(0, sectors * 512);
        assert_eq!((answer.status, answer.data), (OK, model.clone()), "{size}");
        assert_eq!(guest.read(sectors as u64 - 1, 512).data, model[sectors * 512 - 512..]);
        assert_eq!(image.content().len(), size, "reading changes nothing");
        assert_eq!(guest.write(sectors as u64 - 1, &[0x77; 512]), OK);
        model[sectors * 512 - 512..].fill(0x77);
        assert_eq!(guest.read(0, sectors * 512).data, model);
        assert_eq!(image.content(), model);
        assert_eq!(guest.read(sectors as u64, 512).status, IOERR);
    }
}

#[test]
fn a_file_cut_short_underneath_fails_where_it_ends_and_recovers() {
    for kind in ENGINES {
        let image = Image::new(&bytes(64 * 512));
        let mut guest = Guest::new(image.disk().engine(kind).unwrap());
        image.file().set_len(10 * 512 + 100).unwrap();
        assert_eq!(guest.read(0, 10 * 512).data, bytes(10 * 512));
        let answer = guest.read(9, 1024);
        assert_eq!((answer.status, answer.used), (IOERR, 612));
        assert_eq!(guest.read(10, 512).status, IOERR, "the middle of a disk is not padded");
        assert_eq!(guest.read(63, 512).status, IOERR);
        assert_eq!(guest.flush(), OK);
        // A write makes it long again.
        assert_eq!(guest.write(63, &[5; 512]), OK);
        assert_eq!(guest.read(63, 512).data, [5; 512]);
        assert_eq!(guest.read(20, 512).data, [0; 512], "what was cut off is gone");
    }
}

#[test]
fn a_new_size_is_announced_and_used() {
    let image = Image::of_size(1 << 20);
    let disk = image.disk();
    let handle = disk.handle();
    let mut guest = Guest::new(disk);
    let interrupt = guest.driver.interrupt().clone();
    let acknowledge = |guest: &Guest| {
        let status = guest.driver.read(0x60);
        guest.driver.write(0x64, status);
        status
    };
    assert_eq!((guest.capacity(), guest.read(2048, 512).status), (2048, IOERR));
    acknowledge(&guest);
    let generation = guest.driver.read(0xfc);
    image.file().set_len(2 << 20).unwrap();
    assert_eq!(handle.refresh().unwrap(), 2 << 20);
    interrupt.wait_until("a config interrupt", || (acknowledge(&guest) & 2 != 0).then_some(()));
    assert_eq!(guest.capacity(), 4096);
    assert_ne!(guest.driver.read(0xfc), generation);
    assert_eq!(guest.read(2048, 512).status, OK);
    image.file().set_len(512).unwrap();
    assert_eq!(handle.refresh().unwrap(), 512);
    interrupt.wait_until("a config interrupt", || (acknowledge(&guest) & 2 != 0).then_some(()));
    assert_eq!((guest.capacity(), guest.read(1, 512).status), (1, IOERR));
    image.file().set_len(0).unwrap();
    assert!(matches!(handle.refresh(), Err(DiskError::Empty { .. })));
    assert_eq!(guest.capacity(), 1);
    drop(guest);
    assert!(matches!(handle.refresh(), Err(DiskError::NoFile)));
}

#[test]
fn a_size_that_changes_before_the_driver_comes_is_right_when_it_does() {
    let image = Image::of_size(1 << 20);
    let disk = image.disk();
    let handle = disk.handle();
    let mut guest = Guest::unstarted(disk);
    image.file().set_len(1 << 21).unwrap();
    handle.refresh().unwrap();
    assert_eq!(guest.capacity(), 4096);
    guest.driver.start();
    assert_eq!(guest.read(4095, 512).status, OK);
}

#[test]
fn direct_io_with_buffers_offsets_and_lengths_of_any_alignment() {
    for kind in ENGINES {
        let size = 300 * 512 + 77;
        let image = Image::new(&bytes(size));
        let disk = image.disk().engine(kind).unwrap().direct().unwrap();
        let mut guest = Guest::new(disk);
        let mut model = bytes(size);
        model.resize(301 * 512, 0);
        let (head, status) = (guest.driver.buffer(16), guest.driver.buffer(1));
        let mut step = |guest: &mut Guest, write: bool, sector: usize, address: u64, len: usize| {
            let kind = if write { OUT } else { IN };
            let memory = guest.driver.memory().clone();
            memory.write_slice(&header(kind, sector as u64), head).unwrap();
            let data = GuestAddress(address);
            let range = sector * 512..sector * 512 + len;
            if write {
                model[range.clone()].iter_mut().for_each(|byte| *byte = byte.wrapping_mul(3) ^ 1);
                memory.write_slice(&model[range.clone()], data).unwrap();
            }
            guest.offer_at(0, &[(head, 16, false), (data, len, !write), (status, 1, true)]);
            guest.kick(0);
            let answer = guest.wait(0);
            assert_eq!(answer.status, OK, "{write} {sector} {address:#x} {len}");
            if !write {
                assert!(answer.data == model[range], "{sector} {address:#x} {len}");
            }
        };
        // Page, sector and no alignment in memory; sectors and lengths that suit pages or not; data
        // over two mappings; the last sector, of which the file has 77 bytes.
        let places = [0x50_0000, 0x50_0200, 0x50_0001, SEAM.0 - 4096, SEAM.0 - 512, SEAM.0 - 77];
        for address in places {
            for (sector, len) in
                [(0, 4096), (8, 65_536), (1, 512), (3, 8192), (8, 1536), (300, 512)]
            {
                step(&mut guest, false, sector, address, len);
                step(&mut guest, true, sector, address, len);
                step(&mut guest, false, sector, address, len);
            }
        }
        assert_eq!(guest.ranges(WRITE_ZEROES, &[(5, 3, 0), (16, 64, 1)]), OK);
        model[5 * 512..8 * 512].fill(0);
        model[16 * 512..80 * 512].fill(0);
        assert!(guest.read(0, 301 * 512).data == model);
        assert_eq!(guest.flush(), OK);
        assert!(image.content() == model, "no more and no less than the disk");
    }
}

#[test]
fn nothing_of_the_file_is_taken_for_a_format() {
    let mut qcow2 = bytes(4096);
    qcow2[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
    let image = Image::new(&qcow2);
    let mut guest = Guest::new(image.disk());
    assert_eq!((guest.capacity(), guest.read(0, 4096).data), (8, qcow2));
}

#[test]
fn blocks_of_the_file_system_are_the_topology() {
    let image = Image::of_size(1 << 20);
    let guest = Guest::new(image.disk());
    assert_eq!(guest.config(20), 512u32.to_le_bytes());
    let block = std::os::unix::fs::MetadataExt::blksize(&image.file().metadata().unwrap());
    let [exponent] = guest.config::<1>(24);
    assert_eq!(512 << exponent, if block <= 65_536 { block } else { 4096 });
}

/// Only the least time is checked: a busy machine may take longer.
#[test]
fn the_rate_limit_holds_requests_back_and_a_reset_does_not_wait_for_it() {
    let image = Image::of_size(1 << 20);
    let limit = RateLimit::new().iops(50).burst(Duration::ZERO);
    let disk = image.disk().rate_limit(limit);
    let handle = disk.handle();
    let mut guest = Guest::new(disk);
    let start = Instant::now();
    for _ in 0..11 {
        guest.offer(0, &[&header(IN, 0)], &[512, 1]);
    }
    guest.kick(0);
    for _ in 0..11 {
        assert_eq!(guest.wait(0).status, OK);
    }
    assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
    assert_eq!(handle.stats().throttled, 10);

    let slow = RateLimit::new().bytes_per_second(1).burst(Duration::ZERO);
    drop(guest);
    let mut guest = Guest::new(image.disk().rate_limit(slow));
    assert_eq!(guest.read(0, 512).status, OK);
    guest.offer(0, &[&header(IN, 0)], &[512, 1]);
    guest.kick(0);
    let start = Instant::now();
    guest.restart();
    assert!(start.elapsed() < Duration::from_secs(60), "it would be 512 seconds");
}
