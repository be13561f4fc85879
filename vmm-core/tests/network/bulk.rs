//! Much of everything: echoes, streams, datagrams, files.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use sparkler::virtio::block::Disk;
use sparkler::virtio::net::Net;
use tempfile::TempDir;

use crate::amount;
use crate::host::{GUEST, HOST, HOST6, TAP, enter_namespace, set_up_tap};
use crate::http::{Same, fetch, serve};
use crate::machine::Machine;

const SCRIPT: &str = r#"
address
address6
ping -f -q -c $PINGS $HOST | grep transmitted
ping -6 -q -i 0.2 -c 5 $HOST6 | grep transmitted
iperf() {
    name=$1
    shift
    # The server may not be done yet with the run before, and says so.
    tries=0
    until iperf3 --format m --time $SECONDS "$@" >/run/iperf 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] && grep -q 'server is busy' /run/iperf || { cat /run/iperf; exit 1; }
        sleep 0.2
    done
    echo "iperf $name: $(grep receiver /run/iperf | tail -n 1)"
}
iperf out --client $HOST
iperf in --client $HOST --reverse
iperf four --client $HOST --parallel 4
iperf four-in --client $HOST --parallel 4 --reverse
iperf udp --client $HOST --udp --bitrate 20M --length 1400
iperf six --client $HOST6
fetch $HOST
serve
wait_for_test served
"#;

#[test]
#[ignore = "needs the lab"]
fn echoes_streams_datagrams_and_files() {
    enter_namespace();
    let net = Net::tap(TAP).unwrap();
    set_up_tap(1500);
    let _iperf = Iperf::start();
    let data = Data::new(amount(8, 1024));
    serve(TcpListener::bind((HOST, 8000)).unwrap(), &data.path);

    let pings = amount(1000, 10_000);
    let seconds = amount(1, 5);
    let script = format!("PINGS={pings}\nSECONDS={seconds}\nHOST={HOST}\nHOST6={HOST6}\n{SCRIPT}");
    let mut machine = Machine::start(net, &script, |machine| machine.disk(data.disk()));
    machine.meet("served");
    let mut same = Same::new(&data.path);
    fetch((GUEST, 8001), "/cgi-bin/data", &mut same);
    same.assert_all();
    machine.go_on();
    let text = machine.end();

    for count in [pings, 5] {
        let line = format!("{count} packets transmitted, {count} received, 0% packet loss");
        assert!(text.contains(&line), "{text}");
    }
    for name in ["out", "in", "four", "four-in", "udp", "six"] {
        let rate = rate(&text, name);
        assert!(rate > 1.0, "{name}: {text}");
        println!("{name}: {rate} Mbit/s");
    }
}

/// What the receiver got, in Mbit/s.
fn rate(text: &str, name: &str) -> f64 {
    let beginning = format!("iperf {name}: ");
    let line = text.lines().find_map(|line| line.strip_prefix(&beginning)).unwrap();
    let (before, _) = line.split_once(" Mbits/sec").unwrap();
    before.split_whitespace().last().unwrap().parse().unwrap()
}

/// Something to send: a file of random bytes.
pub(crate) struct Data {
    pub(crate) path: PathBuf,
    _folder: TempDir,
}

impl Data {
    pub(crate) fn new(mib: u64) -> Self {
        let folder = TempDir::new().unwrap();
        let path = folder.path().join("data");
        let mut random = File::open("/dev/urandom").unwrap().take(mib << 20);
        io::copy(&mut random, &mut File::create(&path).unwrap()).unwrap();
        Self { path, _folder: folder }
    }

    pub(crate) fn disk(&self) -> Disk {
        Disk::open_read_only(&self.path).unwrap()
    }
}

/// `iperf3` as a server, which ends with the test.
pub(crate) struct Iperf(Child);

impl Iperf {
    /// It listens when this returns.
    pub(crate) fn start() -> Self {
        let mut command = Command::new("iperf3");
        command.args(["--server", "--forceflush"]).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        while !line.contains("listening") {
            line.clear();
            assert!(output.read_line(&mut line).unwrap() > 0, "iperf3 ended");
        }
        // So that it never waits for a reader.
        std::thread::spawn(move || io::copy(&mut output, &mut io::sink()));
        Self(child)
    }
}

impl Drop for Iperf {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
