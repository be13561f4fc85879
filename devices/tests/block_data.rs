//! What a guest wrote is what it reads: random requests at random depths against a model in memory,
//! over every engine. `SPARKLER_DATA_REQUESTS` says how many, for longer runs.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.
#![allow(clippy::cast_possible_truncation)] // Of numbers that the test itself chose.

mod block_common;

use std::collections::HashMap;

use block_common::*;
use sparkler_devices::virtio::block::{Disk, EngineKind};
use sparkler_devices::virtio::features::{RING_EVENT_IDX, RING_INDIRECT_DESC};

const SECTORS: u64 = 8192;
/// Requests to a disk in each test, unless more are asked for.
const REQUESTS: usize = 5_000;

fn requests() -> usize {
    std::env::var("SPARKLER_DATA_REQUESTS").map_or(REQUESTS, |number| number.parse().unwrap())
}

/// What the disk should hold, and which sectors a request in flight concerns. Such sectors are left to
/// it, as what another request would read or write there is not defined.
struct Model {
    bytes: Vec<u8>,
    busy: Vec<bool>,
}

enum Expected {
    Data { at: usize, bytes: Vec<u8> },
    Changed { at: usize, sectors: usize },
    Discarded { at: usize, sectors: usize },
    Done,
}

impl Model {
    fn reserve(&mut self, random: &mut Random, most: u64) -> Option<(u64, usize)> {
        let sectors = 1 + random.below(most);
        let sector = random.below(SECTORS - sectors + 1);
        let range = sector as usize..(sector + sectors) as usize;
        if self.busy[range.clone()].contains(&true) {
            return None;
        }
        self.busy[range].fill(true);
        Some((sector, sectors as usize))
    }

    fn bytes(&mut self, sector: u64, sectors: usize) -> &mut [u8] {
        &mut self.bytes[sector as usize * 512..][..sectors * 512]
    }
}

/// Cuts `bytes` at random places into at most four buffers.
fn cut<'a>(random: &mut Random, mut bytes: &'a [u8]) -> Vec<&'a [u8]> {
    let mut pieces = Vec::new();
    while pieces.len() < 3 && bytes.len() > 1 && random.below(3) > 0 {
        let (piece, rest) = bytes.split_at(1 + random.below(bytes.len() as u64 - 1) as usize);
        pieces.push(piece);
        bytes = rest;
    }
    pieces.push(bytes);
    pieces
}

fn offer(
    guest: &mut Guest,
    model: &mut Model,
    random: &mut Random,
    queue: u16,
) -> Option<(u16, Expected)> {
    let kind = random.below(100);
    let most = if kind.is_multiple_of(10) { 64 } else { 8 };
    if kind < 3 {
        let head = guest.offer(queue, &[&header(FLUSH, 0)], &[1]);
        return Some((head, Expected::Done));
    }
    let (sector, sectors) = model.reserve(random, most)?;
    let at = sector as usize;
    Some(match kind {
        3..48 => {
            let room = vec![0; sectors * 512 + 1];
            let room: Vec<usize> = cut(random, &room).into_iter().map(<[u8]>::len).collect();
            let bytes = model.bytes(sector, sectors).to_vec();
            let head = guest.offer(queue, &[&header(IN, sector)], &room);
            (head, Expected::Data { at, bytes })
        }
        48..93 => {
            let seed = random.next();
            let bytes = model.bytes(sector, sectors);
            for (index, byte) in bytes.iter_mut().enumerate() {
                *byte = (seed >> (index % 7 * 8)) as u8 ^ (index / 7) as u8;
            }
            let whole = [&header(OUT, sector)[..], bytes].concat();
            let head = guest.offer(queue, &cut(random, &whole), &[1]);
            (head, Expected::Changed { at, sectors })
        }
        93..97 => {
            model.bytes(sector, sectors).fill(0);
            let range = range(&(sector, sectors as u32, random.below(2) as u32));
            let head = guest.offer(queue, &[&header(WRITE_ZEROES, 0), &range], &[1]);
            (head, Expected::Changed { at, sectors })
        }
        _ => {
            let range = range(&(sector, sectors as u32, 0));
            let head = guest.offer(queue, &[&header(DISCARD, 0), &range], &[1]);
            (head, Expected::Discarded { at, sectors })
        }
    })
}

fn check(model: &mut Model, answer: &Answer, expected: Expected) {
    assert_eq!(answer.status, OK);
    match expected {
        Expected::Done => {}
        Expected::Data { at, bytes } => {
            assert_eq!(answer.used, bytes.len() + 1);
            if let Some(wrong) = (0..bytes.len()).find(|&byte| answer.data[byte] != bytes[byte]) {
                panic!("byte {wrong} of sector {at} on is wrong, of {} bytes", bytes.len());
            }
            model.busy[at..][..bytes.len() / 512].fill(false);
        }
        Expected::Changed { at, sectors } => model.busy[at..][..sectors].fill(false),
        Expected::Discarded { at, sectors } => {
            model.bytes(at as u64, sectors).fill(0);
            model.busy[at..][..sectors].fill(false);
        }
    }
}

/// Random requests, up to `depth` at once over all queues, and at the end a look at the whole disk.
fn run(image: &Image, disk: Disk, queues: u16, depth: usize, features: u64, seed: u64) {
    let mut guest = Guest::unstarted(disk);
    let features = guest.driver.offered() & !(RING_EVENT_IDX | RING_INDIRECT_DESC) | features;
    guest.driver.start_with(features);
    let mut random = Random::new(seed);
    let size = SECTORS as usize;
    let mut model = Model { bytes: vec![0; size * 512], busy: vec![false; size] };
    let mut expected = HashMap::new();
    let (mut ended, requests) = (0, requests());
    while ended < requests || !expected.is_empty() {
        let target = 1 + random.below(depth as u64) as usize;
        while ended < requests && expected.len() < target {
            let queue = random.below(queues.into()) as u16;
            let Some((head, request)) = offer(&mut guest, &mut model, &mut random, queue) else {
                break;
            };
            expected.insert((queue, head), request);
        }
        for queue in 0..queues {
            guest.kick(queue);
        }
        let keep = random.below(target as u64) as usize;
        let interrupt = guest.driver.interrupt().clone();
        while expected.len() > keep {
            let (queue, answer) = interrupt.wait_until("a request to end", || {
                (0..queues).find_map(|queue| Some((queue, guest.poll(queue)?)))
            });
            let request = expected.remove(&(queue, answer.head)).unwrap();
            check(&mut model, &answer, request);
            ended += 1;
        }
    }
    drop(guest);
    assert!(image.content() == model.bytes, "the file is not what was written");
}

#[test]
fn system_calls() {
    let image = Image::of_size(SECTORS * 512);
    let disk = image.disk().engine(EngineKind::Sync).unwrap();
    run(&image, disk, 1, 32, RING_EVENT_IDX | RING_INDIRECT_DESC, 1);
}

#[test]
fn system_calls_without_event_index_at_depth_one() {
    let image = Image::of_size(SECTORS * 512);
    let disk = image.disk().engine(EngineKind::Sync).unwrap();
    run(&image, disk, 1, 1, 0, 2);
}

#[test]
fn io_uring() {
    let image = Image::of_size(SECTORS * 512);
    let disk = image.disk().engine(EngineKind::IoUring).unwrap();
    run(&image, disk, 1, 32, RING_EVENT_IDX | RING_INDIRECT_DESC, 3);
}

#[test]
fn io_uring_with_four_queues_without_event_index() {
    let image = Image::of_size(SECTORS * 512);
    let disk = image.disk().engine(EngineKind::IoUring).unwrap().queues(4).unwrap();
    run(&image, disk, 4, 32, 0, 4);
}

#[test]
fn direct() {
    let image = Image::of_size(SECTORS * 512);
    let disk = image.disk().direct().unwrap();
    run(&image, disk, 1, 32, RING_EVENT_IDX, 5);
}
