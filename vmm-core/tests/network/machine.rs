//! A machine on a tap, and what its guest says while it runs.

use std::io::{self, Write};
use std::net::TcpStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::block::Disk;
use sparkler::virtio::net::Net;
use sparkler::{Console, Outcome, RunningVm, VmBuilder};

use crate::common;
use crate::guest::{Job, debian, linux};
use crate::host::{GUEST, GUEST6, HOST};

/// How long a guest may say nothing.
const PATIENCE: Duration = Duration::from_secs(180);

/// What scripts may use. Debian's kernel does not know `ip=` (`CONFIG_IP_PNP` is off), and its initrd heeds it
/// only for a root on NFS; here the job does it.
const WORDS: &str = r#"
# Until the test says so.
wait_for_test() {
    echo "waiting: $1"
    busybox nc -l -p 81 </dev/null >/run/told
}
# Serves the second disk, at a port whose protocol tcpdump does not guess.
serve() {
    mkdir -p /run/www/cgi-bin
    cat >/run/www/cgi-bin/data <<EOF
#!/bin/sh
printf 'Content-Type: application/octet-stream\r\n\r\n'
exec cat /dev/vdb
EOF
    chmod +x /run/www/cgi-bin/data
    busybox httpd -p 8001 -h /run/www
}
# Fetches what is on the second disk from the test.
fetch() {
    busybox wget -q -O - "http://$1:8000/" | cmp - /dev/vdb
    echo "fetched from $1"
}
address() {
    set -- $(sed -n 's/.*\bip=\([^ ]*\).*/\1/p' /proc/cmdline | tr : ' ')
    ip link set lo up
    echo 0 >/proc/sys/net/ipv6/conf/all/accept_dad
    echo 0 >/proc/sys/net/ipv6/conf/$4/accept_dad
    ip link set $4 up
    ip addr add $1/$3 dev $4
    ip route add default via $2
}
"#;

pub(crate) struct Machine {
    running: RunningVm,
    lines: Receiver<String>,
    said: String,
    _job: Job,
}

impl Machine {
    /// Starts a Debian that does `script`, which may call `address` to set up `eth0`.
    pub(crate) fn start(net: Net, script: &str, more: impl FnOnce(VmBuilder) -> VmBuilder) -> Self {
        let job = Job::new(&format!(
            "{WORDS}\naddress6() {{\n    ip addr add {GUEST6}/64 dev eth0\n}}\n{script}"
        ));
        let root = Disk::open_read_only(debian()).unwrap();
        let cmdline = format!("root=/dev/vda ro ip={GUEST}::{HOST}:255.255.255.0::eth0:off");
        let (sender, lines) = channel();
        let console = Console::output(Lines { line: Vec::new(), sender });
        let machine = linux(&cmdline).disk(root).console(console);
        let machine = more(machine).disk(job.disk()).net(net);
        let running = machine.build().unwrap().start().unwrap();
        Self { running, lines, said: String::new(), _job: job }
    }

    pub(crate) fn running(&self) -> &RunningVm {
        &self.running
    }

    /// Waits until the guest waits for the test, which is at `what`.
    #[track_caller]
    pub(crate) fn meet(&mut self, what: &str) {
        self.hear(&format!("waiting: {what}"));
    }

    /// Lets the guest go on.
    pub(crate) fn go_on(&self) {
        // It says that it waits before it listens.
        let deadline = Instant::now() + PATIENCE;
        while let Err(error) = TcpStream::connect((GUEST, 81)) {
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            assert!(refused && Instant::now() < deadline, "{error}: {}", self.said);
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the guest says a line that begins so, and returns the rest of it.
    #[track_caller]
    pub(crate) fn hear(&mut self, beginning: &str) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => {
                    self.said += &format!("{line}\n");
                    if let Some(rest) = line.trim().strip_prefix(beginning) {
                        return rest.trim().to_owned();
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!(
                        "the guest stood still before {beginning:?}: {}\n{}",
                        self.said,
                        common::what_moves(&self.running)
                    )
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended before {beginning:?}: {}", self.said)
                }
            }
        }
    }

    /// All that the guest said, if it ended well.
    #[track_caller]
    pub(crate) fn end(mut self) -> String {
        let outcome = self.running.wait_timeout(PATIENCE).unwrap();
        drop(self.running);
        self.said.extend(self.lines.iter().map(|line| line + "\n"));
        assert_eq!(outcome, Some(Outcome::Exited(0)), "{}", self.said);
        self.said
    }
}

/// Sends on each line.
struct Lines {
    line: Vec<u8>,
    sender: Sender<String>,
}

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for &byte in bytes {
            if byte == b'\n' {
                let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).into_owned();
                // The test may have seen enough.
                let _ = self.sender.send(line);
            } else {
                self.line.push(byte);
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
