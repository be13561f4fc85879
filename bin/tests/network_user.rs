//! `--net user`, by a user without any rights, on a host with a network that this test makes up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs::{self, File, Permissions};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use tempfile::TempDir;

/// Nobody in particular.
const USER: u32 = 54321;
/// Documentation's own addresses: no real ones.
const ADDRESS: &str = "192.0.2.2";
const GATEWAY: &str = "192.0.2.1";
const ANSWER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(180);

const SCRIPT: &str = r#"
cat >/run/dhcp <<'EOF'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
echo "dhcp: $ip $router $dns"
echo "$dns" >/run/dns
echo "$router" >/run/router
EOF
chmod +x /run/dhcp
ip link set lo up
ip link set eth0 up
busybox udhcpc -i eth0 -f -n -q -t 20 -T 1 -s /run/dhcp
busybox nslookup name.test $(cat /run/dns) | sed -n 's/^Address.*: */answer: /p'
echo "fetched: $(busybox wget -q -O - http://$(cat /run/router):8000/)"
mkdir /run/www
echo hello from the guest >/run/www/hello
busybox httpd -p 80 -h /run/www
echo serving
busybox nc -l -p 81 </dev/null >/dev/null
"#;

#[test]
#[ignore = "needs the lab"]
fn a_user_without_rights_has_dhcp_dns_and_connections_both_ways() {
    let host = Host::enter();
    thread::spawn(|| answer_names(&UdpSocket::bind("127.0.0.1:53").unwrap()));
    let server = TcpListener::bind("127.0.0.1:8000").unwrap();
    thread::spawn(move || serve(&server, "hello from the host"));

    let net = "user,publish=18080:80,publish=127.0.0.1/18081:81";
    let mut child = host.debian(SCRIPT, net).stdout(Stdio::piped()).spawn().unwrap();
    let mut console = BufReader::new(child.stdout.take().unwrap());
    let mut said = String::new();
    while !said.ends_with("serving\r\n") && !said.ends_with("serving\n") {
        assert!(console.read_line(&mut said).unwrap() > 0, "ended early: {said}");
    }
    let line = format!("dhcp: {ADDRESS} {GATEWAY} {GATEWAY}");
    for line in [line.as_str(), &format!("answer: {ANSWER}"), "fetched: hello from the host"] {
        assert!(said.contains(line), "no {line:?} in {said}");
    }
    assert!(passts() > 0);

    // The guest says so before it listens, and passt accepts before it knows.
    let hello = retry(|| Some(get(18080, "/hello")).filter(|text| text.contains(" 200 ")));
    assert!(hello.ends_with("hello from the guest\n"), "{hello}");
    let ended = retry(|| {
        drop(TcpStream::connect(("127.0.0.1", 18081)));
        child.try_wait().unwrap()
    });
    assert_eq!(ended.code(), Some(0), "{said}");
    retry(|| (passts() == 0).then_some(()));
}

#[test]
#[ignore = "needs the lab"]
fn the_loopback_address_can_be_kept_from_the_guest() {
    let host = Host::enter();
    let server = TcpListener::bind("127.0.0.1:8000").unwrap();
    server.set_nonblocking(true).unwrap();
    let script = SCRIPT.split_once("busybox nslookup").unwrap().0;
    // Nobody answers at the gateway's address, neither with a connection nor with a refusal.
    let script = format!(
        "{script}! busybox wget -T 3 -q -O - http://$(cat /run/router):8000/\necho unreachable\n"
    );
    let output = host.debian(&script, "user,no-loopback").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("unreachable"), "{output:?}");
    assert_eq!(server.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
}

#[test]
#[ignore = "needs the lab"]
fn passt_ends_with_a_monitor_that_is_killed() {
    let host = Host::enter();
    let guest = host.file("guest", sparkler_guest::ELF);
    let words = ["run", &guest, "--cmdline", "test=hang", "--net", "user,publish=18080:80"];
    let mut child = host.sparkler(&words).stdout(Stdio::piped()).spawn().unwrap();
    // It prints its greeting.
    let mut console = BufReader::new(child.stdout.take().unwrap());
    console.read_line(&mut String::new()).unwrap();
    assert_eq!(passts(), 1);
    assert_refused(&host, &["--net", "user,publish=18080:80"], "port 18080");
    child.kill().unwrap();
    child.wait().unwrap();
    retry(|| (passts() == 0).then_some(()));
}

#[test]
#[ignore = "needs the lab"]
fn what_is_missing_is_said() {
    let host = Host::enter();
    let command = host.refused(&["--net", "user"], |command| command.env("PATH", "/nonexistent"));
    assert!(command.contains("passt is not installed"), "{command}");
    assert_refused(&host, &["--net", "user,publish=80:80"], "port 80 of this host");
    assert_refused(&host, &["--net", "tap=tap0"], "tap0");
    assert_refused(&host, &["--net", "stream=/nonexistent"], "/nonexistent");
    run("ip", "route del default");
    assert_refused(&host, &["--net", "user"], "passt refuses to start");
}

#[track_caller]
fn assert_refused(host: &Host, words: &[&str], word: &str) {
    let line = host.refused(words, |command| command);
    assert!(line.contains(word), "no {word:?} in {line}");
}

/// A host of its own: its networks, its `/etc/resolv.conf`, and `/dev/kvm` for everyone.
struct Host {
    folder: TempDir,
}

impl Host {
    /// The calling thread, and whatever it starts, is there from now on.
    fn enter() -> Self {
        if !Path::new("/dev/net/tun").exists() {
            run("modprobe", "tun");
        }
        let folder = tempfile::tempdir().unwrap();
        // SAFETY: networks and mounts of this thread change, and no file descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE).unwrap();
        // The usual place for temporary files may take no device nodes.
        mount("tmpfs", folder.path(), "tmpfs", MountFlags::empty(), None).unwrap();
        fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let host = Self { folder };
        // As on any host with udev.
        for (device, name) in [("/dev/kvm", "kvm"), ("/dev/net/tun", "tun")] {
            host.node(device.as_ref(), name, 0o666);
            mount_bind(host.path(name), device).unwrap();
        }
        if !Path::new("/etc/resolv.conf").exists() {
            File::create("/etc/resolv.conf").unwrap();
        }
        mount_bind(host.file("resolv.conf", b"nameserver 127.0.0.1\n"), "/etc/resolv.conf")
            .unwrap();
        fs::copy(common::BINARY, host.path("sparkler")).unwrap();

        run("ip", "link set lo up");
        // Nobody is there, which will do for a network.
        run("ip", "link add up0 type dummy");
        run("ip", "link set up0 up");
        run("ip", &format!("addr add {ADDRESS}/24 dev up0"));
        run("ip", &format!("route add default via {GATEWAY} dev up0"));
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A new file that everyone may read.
    fn file(&self, name: &str, content: &[u8]) -> String {
        fs::write(self.path(name), content).unwrap();
        self.path(name).into_os_string().into_string().unwrap()
    }

    /// A copy of the file that a variable names.
    fn copy(&self, variable: &str) -> String {
        self.file(variable, &fs::read(named_by(variable)).unwrap())
    }

    fn root_disk(&self) -> String {
        let original = named_by("SPARKLER_ROOT_DISK");
        if fs::metadata(&original).unwrap().file_type().is_block_device() {
            self.node(&original, "root", 0o444);
            return self.path("root").into_os_string().into_string().unwrap();
        }
        self.copy("SPARKLER_ROOT_DISK")
    }

    /// Another node for a device, with other rights.
    fn node(&self, original: &Path, name: &str, mode: u32) {
        let metadata = fs::metadata(original).unwrap();
        let kind = FileType::from_raw_mode(metadata.mode());
        mknodat(CWD, self.path(name), kind, Mode::from_raw_mode(mode), metadata.rdev()).unwrap();
        fs::set_permissions(self.path(name), Permissions::from_mode(mode)).unwrap();
    }

    /// `sparkler` as the user without rights.
    fn sparkler(&self, words: &[&str]) -> Command {
        let mut command = Command::new(self.path("sparkler"));
        command.args(words).uid(USER).gid(USER).current_dir("/").stdin(Stdio::null());
        command
    }

    /// `sparkler` with a Debian that does `script` on a network.
    fn debian(&self, script: &str, net: &str) -> Command {
        let root = format!("{},ro", self.root_disk());
        let job = self.file("job", format!("#!/bin/sh -eu\n{script}").as_bytes());
        let job = format!("{job},ro,serial=job");
        let (kernel, initrd) = (self.copy("SPARKLER_KERNEL"), self.copy("SPARKLER_INITRD"));
        let mut words = vec!["run", &kernel, "--initrd", &initrd, "--rng"];
        words.extend(["--cmdline", "console=ttyS0 quiet panic=-1 root=/dev/vda ro"]);
        words.extend(["--disk", &root, "--disk", &job, "--net", net]);
        self.sparkler(&words)
    }

    /// The line that says why nothing was started.
    #[track_caller]
    fn refused(&self, words: &[&str], more: impl Fn(&mut Command) -> &mut Command) -> String {
        let guest = self.file("any", sparkler_guest::ELF);
        let mut command = self.sparkler(&[&["run", guest.as_str()], words].concat());
        let output = more(&mut command).output().unwrap();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{line}");
        assert_eq!(line.lines().count(), 1, "{line}");
        line
    }
}

fn named_by(variable: &str) -> PathBuf {
    std::env::var_os(variable).unwrap_or_else(|| panic!("{variable} must name a file")).into()
}

#[track_caller]
fn run(program: &str, words: &str) {
    let status = Command::new(program).args(words.split_whitespace()).status().unwrap();
    assert!(status.success(), "{program} {words}: {status}");
}

/// Until there is a result. Only for what another process does in its own time.
#[track_caller]
fn retry<T>(mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// How many processes were started as ours are. One that has ended has no command line any more.
fn passts() -> usize {
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let cmdlines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    cmdlines.filter(|it| it.starts_with(b"passt\0") && contains(it, b"18080:80")).count()
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Everything that comes.
fn get(port: u16, path: &str) -> String {
    let mut text = String::new();
    let Ok(stream) = TcpStream::connect(("127.0.0.1", port)) else { return text };
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = write!(&stream, "GET {path} HTTP/1.0\r\n\r\n");
    // A connection that is cut is for the caller to judge.
    let _ = asked.and_then(|()| (&stream).read_to_string(&mut text));
    text
}

fn serve(listener: &TcpListener, text: &str) {
    for stream in listener.incoming().map_while(Result::ok) {
        let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
        lines.find(String::is_empty);
        let _ = write!(&stream, "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
    }
}

/// Answers each question for the address of any name with [`ANSWER`], and all others with nothing.
fn answer_names(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, from)) = socket.recv_from(&mut question) {
        let question = &question[..length];
        let for_address = question.ends_with(&[0, 1, 0, 1]);
        let mut answer = question.to_vec();
        // A response to one question, recursion available, with no or one answer.
        answer[2..8].copy_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(for_address)]);
        if for_address {
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(ANSWER.octets());
        }
        socket.send_to(&answer, from).unwrap();
    }
}
