//! `--metrics`: what clients get, and what they cannot do.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a panic here is a failed test"
)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use common::{Files, Run, finish, run, sparkler};
use rustix::process::{Pid, Signal, kill_process};

/// A machine that runs until it is ended, with its counters on a socket.
struct Machine {
    files: Files,
    child: Child,
    socket: String,
}

impl Machine {
    /// Starts it, and waits for its socket.
    fn start(cmdline: &str, more: &[&str]) -> Self {
        let files = Files::new();
        let (guest, socket) = (files.guest(), files.text("metrics"));
        let args = ["run", &guest, "--cmdline", cmdline, "--metrics", &socket, "--json"];
        let mut command = sparkler(args.into_iter().chain(more.iter().copied()));
        let child = command.spawn().unwrap();
        let machine = Self { files, child, socket };
        // The socket's file is there as soon as it is listened on.
        let begun = Instant::now();
        while !machine.files.path("metrics").exists() {
            assert!(begun.elapsed() < common::TIME_LIMIT, "no socket");
            thread::sleep(Duration::from_millis(5));
        }
        machine
    }

    fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(common::TIME_LIMIT)).unwrap();
        stream
    }

    /// Everything that one gets who sends `request`.
    fn ask(&self, request: &[u8]) -> String {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn terminate(self) -> Run {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let ended = finish(self.child);
        assert_eq!(ended.code, Some(143), "{ended:?}");
        assert_eq!(self.files.names(), ["guest.elf"], "the socket is gone");
        ended
    }
}

/// The value of a sample.
fn sample(text: &str, name: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
}

#[test]
#[ignore = "needs /dev/kvm"]
fn by_http_and_without() {
    let machine = Machine::start("end=hang", &["--rng"]);
    let exits = r#"sparkler_vcpu_exits_total{vcpu="0",reason="port_writes"}"#;
    // The guest says hello some time.
    while sample(&machine.ask(b"\n"), exits) == 0 {}
    let http = machine.ask(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    let (head, body) = http.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{http}");
    assert!(head.contains("Content-Type: text/plain; version=0.0.4"), "{http}");
    assert!(head.contains(&format!("Content-Length: {}", body.len())), "{http}");
    assert!(sample(body, exits) > 0);
    assert_eq!(sample(body, "sparkler_memory_bytes"), 256 << 20);
    assert!(sample(body, "sparkler_memory_resident_bytes") > 0);
    assert_eq!(sample(body, r#"sparkler_device_requests_total{device="0",type="rng"}"#), 0);
    // Each family is said once, before its samples.
    let families: Vec<_> = body.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    let mut names: Vec<_> = families.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let of_samples = body.lines().filter(|line| !line.starts_with('#'));
    let mut of_samples: Vec<_> =
        of_samples.map(|line| line.split(['{', ' ']).next().unwrap()).collect();
    of_samples.dedup();
    assert_eq!(names, of_samples);
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), families.len());

    // One who only listens, and one who has nothing to say.
    let mut silent = String::new();
    machine.connect().read_to_string(&mut silent).unwrap();
    assert!(silent.starts_with("# HELP sparkler_"), "{silent}");
    let closed = machine.connect();
    closed.shutdown(Shutdown::Write).unwrap();
    assert!(std::io::read_to_string(closed).unwrap().starts_with("# HELP sparkler_"));

    let json = machine.ask(b"GET /metrics.json HTTP/1.0\n\n");
    let json: serde_json::Value =
        serde_json::from_str(json.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(json["devices"][0]["type"], "rng");
    assert!(machine.ask(b"GET /x HTTP/1.0\r\n\r\n").starts_with("HTTP/1.1 404 "));
    let at_end = machine.terminate().json();
    let writes = |stats: &serde_json::Value| stats["vcpus"][0]["port_writes"].as_u64().unwrap();
    assert!(writes(&at_end["stats"]) >= writes(&json), "{at_end}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn hostile_clients_hold_up_nobody_for_long() {
    let machine = Machine::start("end=hang", &[]);
    // More than are served at a time: of each kind one who sends half a request and waits, one who sends
    // without end and never reads, one who goes away.
    let mut held = Vec::new();
    for kind in 0..60 {
        let mut stream = machine.connect();
        stream.set_nonblocking(true).unwrap();
        let flood = vec![b'x'; 1 << 20];
        let _ = match kind % 3 {
            0 => stream.write(b"GET /metrics HTTP/1.1\r\n"),
            1 => stream.write(&flood),
            _ => Ok(0),
        };
        if kind % 3 != 2 {
            held.push(stream);
        }
    }
    let text = machine.ask(b"GET / HTTP/1.0\r\n\r\n");
    assert!(text.contains("sparkler_memory_bytes "), "{text}");
    machine.terminate();
    drop(held);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_end_waits_for_no_client() {
    let machine = Machine::start("end=hang", &[]);
    let _silent: Vec<_> = (0..20).map(|_| machine.connect()).collect();
    let begun = Instant::now();
    machine.terminate();
    assert!(begun.elapsed() < Duration::from_secs(60));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_socket_in_use_is_left_alone_and_one_left_over_is_replaced() {
    let machine = Machine::start("end=hang", &[]);
    let guest = machine.files.text("guest.elf");
    let args = ["run", &guest, "--cmdline", "end=hang", "--metrics", &machine.socket];
    run(sparkler(args)).assert_refused("in use by another process");
    assert!(machine.ask(b"\n").contains("sparkler_memory_bytes"));
    // Killed, it leaves its file behind.
    let Machine { files, mut child, socket } = machine;
    kill_process(Pid::from_child(&child), Signal::KILL).unwrap();
    child.wait().unwrap();
    assert_eq!(files.names(), ["guest.elf", "metrics"]);
    let args = ["run", &guest, "--cmdline", "code=3", "--metrics", &socket];
    assert_eq!(run(sparkler(args)).code, Some(3));
    assert_eq!(files.names(), ["guest.elf"]);

    fs::write(files.path("metrics"), "precious").unwrap();
    run(sparkler(args)).assert_refused("is no socket");
    assert_eq!(fs::read(files.path("metrics")).unwrap(), b"precious");
}
