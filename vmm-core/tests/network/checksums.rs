//! What passes over the tap, with the guest's offloads on and off.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use sparkler::virtio::net::Net;

use crate::bulk::Data;
use crate::host::{GUEST, HOST, HOST6, TAP, enter_namespace, run, set_up_tap};
use crate::http::{Same, fetch, serve};
use crate::machine::Machine;

const SCRIPT: &str = r#"
address
address6
serve
for offloads in on off; do
    ethtool -K eth0 tx $offloads sg $offloads tso $offloads gso $offloads gro $offloads
    wait_for_test $offloads
    ping -q -i 0.2 -c 3 $HOST | grep transmitted
    fetch $HOST
    fetch "[$HOST6]"
    wait_for_test fetched-$offloads
done
"#;

#[test]
#[ignore = "needs the lab"]
fn checksums_are_right_and_frames_whole_with_offloads_on_and_off() {
    enter_namespace();
    let net = Net::tap(TAP).unwrap();
    set_up_tap(1500);
    let data = Data::new(1);
    serve(TcpListener::bind((HOST, 8000)).unwrap(), &data.path);
    serve(TcpListener::bind((HOST6, 8000)).unwrap(), &data.path);

    let script = format!("HOST={HOST}\nHOST6={HOST6}\n{SCRIPT}");
    let mut machine = Machine::start(net, &script, |machine| machine.disk(data.disk()));
    for offloads in ["on", "off"] {
        machine.meet(offloads);
        // What both ends of a tap leave to each other has no checksum on it.
        run("ethtool", &format!("-K {TAP} tx {offloads} gso {offloads} gro {offloads}"));
        let capture = Capture::start();
        machine.go_on();
        machine.meet(&format!("fetched-{offloads}"));
        let mut same = Same::new(&data.path);
        fetch((GUEST, 8001), "/cgi-bin/data", &mut same);
        same.assert_all();
        let seen = capture.end();
        for word in ["malformed", "truncated", "[|", "bad-len", "bad-hlen", "invalid"] {
            let line = seen.lines().find(|line| line.contains(word));
            assert!(line.is_none(), "{offloads}: {line:?}");
        }
        assert!(seen.contains("ICMP echo reply"), "{offloads}: {seen}");
        if offloads == "off" {
            // Not "bad" alone: a checksum may spell it.
            let words = ["incorrect", "bad cksum", "bad udp cksum"];
            let wrong = seen.lines().find(|line| words.iter().any(|word| line.contains(word)));
            assert!(wrong.is_none(), "{wrong:?}");
            let right = seen.lines().filter(|line| line.contains("(correct)")).count();
            // Two files of 1 MiB to the guest and one from it, in frames of 1500 bytes.
            assert!(right > 2000, "{right} right ones");
            println!("{right} right checksums");
        }
        machine.go_on();
    }
    let text = machine.end();
    assert_eq!(text.matches("3 packets transmitted, 3 received").count(), 2, "{text}");
    assert_eq!(text.matches("fetched from").count(), 4, "{text}");
}

/// `tcpdump` on the tap.
struct Capture {
    child: Child,
    file: PathBuf,
    _folder: tempfile::TempDir,
}

impl Capture {
    /// It sees all frames from when this returns.
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("frames");
        let mut command = Command::new("tcpdump");
        // As root: the folder is root's.
        command.args(["-i", TAP, "-Z", "root", "-B", "16384", "-w"]).arg(&file);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut errors = BufReader::new(child.stderr.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            assert!(errors.read_line(&mut line).unwrap() > 0, "tcpdump ended");
        }
        Self { child, file, _folder: folder }
    }

    /// What it saw, in words.
    fn end(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        self.child.wait().unwrap();
        read(&self.file)
    }
}

fn read(file: &Path) -> String {
    let output =
        Command::new("tcpdump").args(["-Z", "root", "-n", "-vv", "-r"]).arg(file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
