//! Network interfaces, as the built-in guest drives them: each frame is numbered, has a checksum, and is
//! looked at on arrival. Some of them look at what the whole process has, so one runs at a time.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::net::{MacAddress, Net};
use sparkler::{Milestone, Outcome, RunningVm};
use sparkler_guest::exit_code;

use crate::common::disks::{number, run_to_end, succeed, value};
use crate::common::holdings::{Holdings, resident_kib};
use crate::common::{Captured, drop_limit, guest};

/// Less, and nothing is sent: of 0x88b5, local experiments.
const HEAD: usize = 32;

fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest with one interface, which does `test=net` with these words.
struct Guest {
    running: RunningVm,
    captured: Captured,
}

impl Guest {
    fn start(words: &str, net: Net) -> Self {
        let captured = Captured::default();
        // Two guests spinning for each other's frames would leave no processor to the interfaces.
        let builder = guest(&format!("quiet wait=halt test=net {words}")).net(net);
        let running = builder.console(captured.console()).build().unwrap().start().unwrap();
        Self { running, captured }
    }

    /// What it printed, if all went well.
    #[track_caller]
    fn succeed(self) -> String {
        let outcome = self.running.wait().unwrap();
        drop(self.running);
        let text = self.captured.text();
        assert_eq!(outcome, Outcome::Exited(0), "{text}");
        text
    }

    fn wait_until_it_runs(&self) {
        while self.running.timeline().at(Milestone::Mark(2)).is_none() {
            thread::yield_now();
        }
    }
}

/// Has two guests do this with a cable between them, and returns what each printed.
#[track_caller]
fn both(one: &str, other: &str) -> [String; 2] {
    let (left, right) = Net::pair().unwrap();
    // Frames of all sizes are to wait for buffers.
    let [left, right] = [left, right].map(|net| net.mtu(65_520).unwrap());
    let guests = [Guest::start(one, left), Guest::start(other, right)];
    guests.map(Guest::succeed)
}

#[test]
#[ignore = "needs /dev/kvm"]
fn two_guests_exchange_frames_in_all_ways() {
    let _alone = alone();
    for (one, other) in [
        ("frames=1000", "frames=1000"),
        ("frames=1000 noindirect noeventidx", "frames=1000 plain"),
        ("frames=1000 wait=poll", "frames=1000 wait=interrupt"),
        ("frames=1000 buffer=200 buffers=200", "frames=1000 nomergeable depth=1"),
        (
            "frames=500 size=9014 buffer=500 buffers=256",
            "frames=500 size=9014 buffers=2 nomergeable",
        ),
        (
            "frames=100 size=65000 buffers=8 depth=4",
            "frames=100 size=65000 buffer=1526 buffers=128 depth=3",
        ),
    ] {
        for text in both(one, other) {
            let sent = number(&text, "sent");
            assert!(sent >= 100 && number(&text, "received") == sent, "{one} | {other}: {text}");
        }
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn much_data_goes_both_ways_at_once() {
    let _alone = alone();
    for text in both("frames=20000 size=1514 plain", "frames=20000 size=1514 plain") {
        assert_eq!(number(&text, "bytes"), 20_000 * 1514);
        println!("{} frames a second", number(&text, "frames_per_second"));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_is_sent_back_comes_back() {
    let _alone = alone();
    let (left, right) = Net::pair().unwrap();
    let stats = [left.handle(), right.handle()];
    let ping = Guest::start("role=ping frames=2000 window=16", left);
    let pong = Guest::start("role=pong frames=2000", right);
    let [ping, pong] = [ping, pong].map(Guest::succeed);
    assert_eq!(number(&ping, "bytes"), number(&pong, "bytes"));
    for stats in stats {
        let stats = stats.stats();
        assert_eq!((stats.sent_frames, stats.received_frames), (2000, 2000), "{stats:?}");
        assert_eq!(stats.sent_bytes, number(&ping, "bytes"), "{stats:?}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn frames_wait_for_a_guest_that_has_no_buffers_yet() {
    let _alone = alone();
    let (left, right) = Net::pair().unwrap();
    let stats = right.handle();
    let flood = Guest::start("role=flood frames=3000", left);
    let sink = Guest::start("role=sink frames=3000 buffers=3 late=300", right);
    flood.succeed();
    assert_eq!(number(&sink.succeed(), "received"), 3000);
    let stats = stats.stats();
    assert!(stats.receive_paused > 0 && stats.received_frames == 3000, "{stats:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_guest_learns_what_the_interface_is() {
    let _alone = alone();
    let mac: MacAddress = "02:00:00:00:01:0f".parse().unwrap();
    let (net, _other) = Net::pair().unwrap();
    let text = succeed(guest("quiet test=netinfo").net(net.mac(mac).mtu(4000).unwrap()));
    assert_eq!(value(&text, "mac"), "02:00:00:00:01:0f");
    assert_eq!(number(&text, "mtu"), 4000);
    assert_eq!(number(&text, "status"), 1);

    let (net, other) = Net::pair().unwrap();
    let macs = [net, other]
        .map(|net| value(&succeed(guest("quiet test=netinfo").net(net)), "mac").to_owned());
    assert_ne!(macs[0], macs[1]);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_stream_socket_carries_frames_however_it_cuts_them() {
    let _alone = alone();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let echo = thread::spawn(move || echo(ours));
    let text = Guest::start("role=ping frames=400 window=8", Net::stream_fd(theirs)).succeed();
    assert_eq!(number(&text, "received"), 400);
    // The machine is gone, and with it the socket's other end.
    assert_eq!(echo.join().unwrap(), 400);
}

/// Checks each frame that comes and sends it back, in pieces of all sizes; returns how many came.
fn echo(stream: UnixStream) -> u64 {
    let mut count = 0;
    let mut length = [0; 4];
    while (&stream).read_exact(&mut length).is_ok() {
        let mut frame = vec![0; u32::from_be_bytes(length).try_into().unwrap()];
        (&stream).read_exact(&mut frame).unwrap();
        assert_eq!(frame[12..14], [0x88, 0xb5]);
        assert_eq!(usize::from(u16::from_le_bytes([frame[14], frame[15]])), frame.len());
        assert_eq!(word(&frame[16..24]), count);
        assert_eq!(word(&frame[24..32]), checksum(count, &frame[HEAD..]));
        count += 1;
        let answer = [&length[..], &frame].concat();
        let piece = usize::try_from(count % 50 + 1).unwrap();
        answer.chunks(piece * piece).for_each(|piece| (&stream).write_all(piece).unwrap());
    }
    count
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

/// As the guest calculates it.
fn checksum(number: u64, content: &[u8]) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x100_0000_01b3);
    let sum = step(0xcbf2_9ce4_8422_2325, number);
    let (words, rest) = content.split_at(content.len() / 8 * 8);
    let sum = words.chunks_exact(8).fold(sum, |sum, bytes| step(sum, word(bytes)));
    rest.iter().fold(sum, |sum, byte| step(sum, u64::from(*byte)))
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_wrong_bit_is_noticed() {
    let _alone = alone();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let tamper = thread::spawn(move || {
        let mut frame = [0; 4 + 100];
        (&ours).read_exact(&mut frame).unwrap();
        frame[4 + 77] ^= 1;
        (&ours).write_all(&frame).unwrap();
        ours
    });
    let net = Net::stream_fd(theirs);
    let (outcome, text) = run_to_end(guest("quiet test=net role=ping frames=1 size=100").net(net));
    assert_eq!(outcome, Outcome::Exited(exit_code::NET_CONTENT), "{text}");
    drop(tamper.join().unwrap());
}

/// Lets a guest do what no honest driver does, and then ping; next to it, another pair of guests works and
/// must not notice; and the process must not hold more the longer it goes on.
fn survives(case: &str) {
    let _alone = alone();
    let (before, resident) = (Holdings::now(), resident_kib());
    let (left, right) = Net::pair().unwrap();
    let (near, far) = Net::pair().unwrap();
    let neighbours =
        [Guest::start("frames=1500", near), Guest::start("frames=1500 buffer=700", far)];
    let pong = Guest::start("role=pong frames=300", right);
    let hostile = Guest::start(&format!("case={case} role=ping frames=300"), left);

    let mut most = Holdings::now();
    let ended = || hostile.running.timeline().at(Milestone::Ended).is_some();
    while !ended() {
        most = most.max(Holdings::now());
        thread::sleep(Duration::from_millis(5)); // Samples often enough, and leaves the CPUs to the guests.
    }
    for guest in neighbours.into_iter().chain([hostile, pong]) {
        guest.succeed();
    }

    // Four machines have less than this together; one leak a round would be far more.
    assert!(most.fds < before.fds + 100, "{most:?}, before: {before:?}");
    assert!(most.threads < before.threads + 60, "{most:?}, before: {before:?}");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Holdings::now() != before && Instant::now() < deadline {
        thread::yield_now(); // A joined thread may stay in the kernel's list for a moment.
    }
    assert_eq!(Holdings::now(), before);
    let grown = resident_kib().saturating_sub(resident);
    assert!(grown < 16 << 10, "{grown} KiB more than before");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn resets_with_frames_under_way() {
    survives("reset times=300");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn chains_that_begin_nowhere() {
    survives("break times=200");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn headers_without_a_meaning() {
    survives("headers times=2000");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn commands_without_a_meaning() {
    survives("control times=1000");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_machine_stops_in_the_midst_of_a_flood() {
    let _alone = alone();
    let flood = "role=flood frames=1000000000000 size=1514";
    // Into nothing, which never takes it; to somebody who does; and both ends at once.
    let (net, unread) = Net::pair().unwrap();
    let alone = Guest::start(flood, net);
    let (net, other) = Net::pair().unwrap();
    let sender = Guest::start(flood, net);
    let sink = Guest::start("role=sink frames=1000000000000 blind", other);
    for guest in [alone, sender, sink] {
        guest.wait_until_it_runs();
        thread::sleep(Duration::from_millis(50)); // Some traffic; it does not end by itself.
        let begin = Instant::now();
        drop(guest.running);
        assert!(begin.elapsed() < drop_limit(), "{:?}", begin.elapsed());
    }
    drop(unread);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn an_interface_without_a_network_leaves_its_guest_alone() {
    let _alone = alone();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let sender = Guest::start("role=flood frames=5000", Net::stream_fd(theirs));
    sender.wait_until_it_runs();
    drop(ours);
    // What is sent is dropped, and the guest gets to its end.
    assert_eq!(number(&sender.succeed(), "sent"), 5000);
}
