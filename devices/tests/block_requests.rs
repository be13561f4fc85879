//! Every kind of request to a disk, sound and malformed, by a driver over the whole transport.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.
#![allow(clippy::cast_possible_truncation)] // Of numbers that the test itself chose.

mod block_common;

use block_common::*;
use sparkler_devices::virtio::block::{Disk, EngineKind};
use sparkler_devices::virtio::mock::SEAM;
use vm_memory::{Bytes, GuestAddress};

/// A disk whose sectors all differ.
fn numbered(sectors: usize) -> Vec<u8> {
    (0..sectors * 512).map(|at| (at / 512 * 7 + at % 251) as u8).collect()
}

fn guest() -> (Image, Guest) {
    let image = Image::new(&numbered(64));
    let guest = Guest::new(image.disk());
    (image, guest)
}

/// After the malformed request, the disk works as before and its content is untouched.
fn still_fine(image: &Image, guest: &mut Guest) {
    assert_eq!(image.content(), numbered(64));
    let answer = guest.read(3, 512);
    assert_eq!((answer.status, &answer.data[..]), (OK, &numbered(64)[3 * 512..4 * 512]));
    assert!(!guest.driver.needs_reset());
}

#[test]
fn reads_and_writes_move_exactly_the_sectors_asked_for() {
    for kind in [EngineKind::Sync, EngineKind::Auto] {
        let image = Image::new(&numbered(64));
        let mut guest = Guest::new(image.disk().engine(kind).unwrap());
        let mut model = numbered(64);
        let answer = guest.read(10, 3 * 512);
        assert_eq!((answer.status, answer.used), (OK, 3 * 512 + 1));
        assert_eq!(answer.data, model[10 * 512..13 * 512]);
        assert_eq!(guest.write(62, &[0xab; 1024]), OK);
        model[62 * 512..].fill(0xab);
        assert_eq!(image.content(), model);
        assert_eq!(guest.read(0, 64 * 512).data, model);
        assert_eq!(guest.flush(), OK);
    }
}

#[test]
fn a_request_may_be_cut_anywhere() {
    let (image, mut guest) = guest();
    let [start, end] = [&header(OUT, 5)[..7], &header(OUT, 5)[7..]];
    let data = [0x5a; 1024];
    let head = [&[start][..], &[end, &data[..1], &data[1..600], &data[600..]]].concat();
    assert_eq!(guest.request(&head, &[1]).status, OK);
    // Header and data in one buffer, data and status in one buffer.
    let joined = [&header(OUT, 7)[..], &data[..512]].concat();
    assert_eq!(guest.request(&[&joined], &[1]).status, OK);
    let answer = guest.request(&[&header(IN, 4)], &[1, 510, 2, 1000, 536]);
    let mut model = numbered(64);
    model[5 * 512..8 * 512].fill(0x5a);
    assert_eq!((answer.status, answer.used), (OK, 2049));
    assert_eq!(answer.data, model[4 * 512..8 * 512]);
    assert_eq!(image.content(), model);
}

#[test]
fn data_may_reach_over_two_regions_of_memory() {
    let (_image, mut guest) = guest();
    let head = guest.driver.buffer(16);
    let status = guest.driver.buffer(1);
    guest.driver.memory().write_slice(&header(IN, 1), head).unwrap();
    let data = GuestAddress(SEAM.0 - 700);
    guest.offer_at(0, &[(head, 16, false), (data, 1536, true), (status, 1, true)]);
    guest.kick(0);
    let answer = guest.wait(0);
    assert_eq!((answer.status, &answer.data[..]), (OK, &numbered(64)[512..4 * 512]));
}

#[test]
fn every_segment_that_seg_max_allows() {
    let (_image, mut guest) = guest();
    assert_eq!(guest.config(12), 254u32.to_le_bytes());
    // 254 buffers of data: 64 sectors in odd pieces.
    let mut pieces = vec![128; 252];
    pieces.extend([1, 64 * 512 - 252 * 128 - 1, 1]);
    let answer = guest.request(&[&header(IN, 0)], &pieces);
    assert_eq!((answer.status, answer.data), (OK, numbered(64)));
}

#[test]
fn nothing_to_move_is_no_error_inside_the_disk() {
    let (image, mut guest) = guest();
    assert_eq!(guest.read(64, 0).status, OK);
    assert_eq!(guest.write(64, &[]), OK);
    assert_eq!(guest.read(65, 0).status, IOERR);
    assert_eq!(guest.ranges(DISCARD, &[(64, 0, 0)]), OK);
    still_fine(&image, &mut guest);
}

#[test]
fn the_serial_number_is_told_padded_with_zeroes() {
    let image = Image::of_size(512);
    let mut guest = Guest::new(image.disk().serial("root disk").unwrap());
    let mut id = [0; 20];
    id[..9].copy_from_slice(b"root disk");
    let answer = guest.request(&[&header(GET_ID, 0)], &[20, 1]);
    assert_eq!((answer.status, answer.used, &answer.data[..]), (OK, 21, &id[..]));
    let answer = guest.request(&[&header(GET_ID, 0)], &[4, 1]);
    assert_eq!((answer.status, answer.used, &answer.data[..]), (OK, 5, &b"root"[..]));
    let answer = guest.request(&[&header(GET_ID, 0)], &[30, 1]);
    assert_eq!((answer.status, answer.used, &answer.data[..20]), (OK, 20, &id[..]));
    assert_eq!(answer.data[20..], [UNTOUCHED; 10]);
}

#[test]
fn a_disk_without_serial_number_tells_zeroes() {
    let mut guest = Guest::new(Image::of_size(512).disk());
    assert_eq!(guest.request(&[&header(GET_ID, 0)], &[20, 1]).data, [0; 20]);
}

#[test]
fn zeroes_are_written_with_and_without_giving_storage_back() {
    let (image, mut guest) = guest();
    let mut model = numbered(64);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(1, 2, 0), (10, 9, 1), (63, 1, 0)]), OK);
    for range in [1..3, 10..19, 63..64] {
        model[range.start * 512..range.end * 512].fill(0);
    }
    assert_eq!(guest.read(0, 64 * 512).data, model);
    assert_eq!(image.content(), model);
}

#[test]
fn discarded_sectors_are_gone_and_their_neighbours_are_not() {
    let (image, mut guest) = guest();
    assert_eq!(guest.ranges(DISCARD, &[(8, 16, 0), (40, 8, 0)]), OK);
    let (content, model) = (image.content(), numbered(64));
    for (sector, (now, before)) in content.chunks(512).zip(model.chunks(512)).enumerate() {
        if !(8..24).contains(&sector) && !(40..48).contains(&sector) {
            assert_eq!(now, before, "sector {sector}");
        }
    }
    use std::os::unix::fs::MetadataExt;
    // Where files can have holes, the storage is given back. (64 sectors are 8 blocks of 4 KiB.)
    let blocks = |image: &Image| image.file().metadata().unwrap().blocks();
    let whole = Image::new(&numbered(64));
    assert!(blocks(&image) < blocks(&whole) || content == model);
}

#[test]
fn a_header_that_is_too_short_is_an_error() {
    let (image, mut guest) = guest();
    assert_eq!(guest.request(&[&header(OUT, 0)[..15]], &[1]).status, IOERR);
    assert_eq!(guest.request(&[], &[512, 1]).status, IOERR);
    still_fine(&image, &mut guest);
}

#[test]
fn a_request_without_room_for_a_status_needs_a_reset() {
    let (image, mut guest) = guest();
    guest.offer(0, &[&header(OUT, 0), &[1; 512]], &[]);
    guest.kick(0);
    guest.driver.wait_for_needs_reset();
    assert_eq!(image.content(), numbered(64));
    guest.restart();
    still_fine(&image, &mut guest);
}

#[test]
fn data_that_is_no_multiple_of_a_sector_is_an_error() {
    let (image, mut guest) = guest();
    for len in [1, 511, 513] {
        let answer = guest.read(0, len);
        assert_eq!((answer.status, answer.used), (IOERR, 0));
        assert_eq!(answer.data, vec![UNTOUCHED; len]);
        assert_eq!(guest.write(0, &vec![1; len]), IOERR);
    }
    still_fine(&image, &mut guest);
}

#[test]
fn a_sector_beyond_the_capacity_is_an_error() {
    let (image, mut guest) = guest();
    for sector in [64, 63, 1000, u64::MAX, u64::MAX / 512, 1 << 55, (1 << 55) - 1] {
        let answer = guest.read(sector, 1024);
        assert_eq!((answer.status, answer.used), (IOERR, 0), "{sector}");
        assert_eq!(guest.write(sector, &[1; 1024]), IOERR, "{sector}");
    }
    assert_eq!(image.content().len(), 64 * 512);
    still_fine(&image, &mut guest);
}

#[test]
fn a_read_only_disk_refuses_changes_and_says_so_in_its_features() {
    let open: [fn(&Image) -> Disk; 2] =
        [|image| Disk::open_read_only(image.path()).unwrap(), |image| image.disk().read_only()];
    for open in open {
        let image = Image::new(&numbered(64));
        let mut guest = Guest::new(open(&image));
        let offered = guest.driver.offered();
        assert_eq!(offered & (F_RO | F_DISCARD | F_WRITE_ZEROES), F_RO);
        assert_eq!(guest.write(0, &[1; 512]), IOERR);
        assert_eq!(guest.ranges(DISCARD, &[(0, 8, 0)]), IOERR);
        assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 8, 0)]), IOERR);
        assert_eq!(guest.flush(), OK);
        still_fine(&image, &mut guest);
    }
}

#[test]
fn an_unknown_type_is_unsupported() {
    let (image, mut guest) = guest();
    for kind in [2, 3, 5, 14, 0x100, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.request(&[&header(kind, 0), &[1; 512]], &[1]).status, UNSUPP);
    }
    still_fine(&image, &mut guest);
}

#[test]
fn discard_and_zeroes_without_negotiation_are_unsupported() {
    let image = Image::new(&numbered(64));
    let mut guest = Guest::with_features(image.disk(), F_FLUSH);
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 0)]), UNSUPP);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 8, 0)]), UNSUPP);
    still_fine(&image, &mut guest);
}

#[test]
fn unknown_flags_of_a_range_are_unsupported() {
    let (image, mut guest) = guest();
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 1)]), UNSUPP);
    assert_eq!(guest.ranges(DISCARD, &[(0, 8, 0x8000_0000)]), UNSUPP);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 8, 2)]), UNSUPP);
    still_fine(&image, &mut guest);
}

#[test]
fn one_bad_range_refuses_them_all() {
    let (image, mut guest) = guest();
    for kind in [DISCARD, WRITE_ZEROES] {
        for bad in [(60, 5, 0), (u64::MAX, 1, 0), (0, u32::MAX, 0), (1 << 55, 1, 0)] {
            assert_eq!(guest.ranges(kind, &[(0, 8, 0), bad]), IOERR);
        }
    }
    still_fine(&image, &mut guest);
}

#[test]
fn ranges_are_sixteen_at_most_and_whole() {
    let (image, mut guest) = guest();
    for kind in [DISCARD, WRITE_ZEROES] {
        assert_eq!(guest.ranges(kind, &[]), IOERR);
        assert_eq!(guest.ranges(kind, &[(0, 1, 0); 17]), IOERR);
        assert_eq!(guest.request(&[&header(kind, 0), &[0; 15]], &[1]).status, IOERR);
        assert_eq!(guest.request(&[&header(kind, 0), &[0; 17]], &[1]).status, IOERR);
    }
    still_fine(&image, &mut guest);
    assert_eq!(guest.ranges(WRITE_ZEROES, &[(0, 1, 0); 16]), OK);
    assert_eq!(guest.read(0, 512).data, [0; 512]);
}

#[test]
fn counters_tell_what_happened() {
    let image = Image::of_size(1 << 20);
    let disk = image.disk();
    let handle = disk.handle();
    let mut guest = Guest::new(disk);
    guest.read(0, 4096);
    guest.read(0, 512);
    guest.write(0, &[1; 1024]);
    guest.flush();
    guest.ranges(DISCARD, &[(0, 8, 0)]);
    guest.ranges(WRITE_ZEROES, &[(0, 8, 0)]);
    guest.read(1 << 40, 512);
    guest.request(&[&header(99, 0)], &[1]);
    let stats = handle.stats();
    assert_eq!((stats.reads, stats.read_bytes), (2, 4608));
    assert_eq!((stats.writes, stats.written_bytes), (1, 1024));
    assert_eq!((stats.flushes, stats.discards, stats.errors, stats.throttled), (1, 2, 2, 0));
}
