//! The example that needs networks, as a program, on a host whose network this test makes up.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

/// A server of the kind that one writes in a minute.
const TASK: &str = r#"
cat >/run/dhcp <<'EOF'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add $ip/$mask dev $interface
ip route add default via $router
EOF
chmod +x /run/dhcp
ip link set lo up
ip link set eth0 up
busybox udhcpc -i eth0 -f -n -q -t 20 -T 1 -s /run/dhcp
cat >/run/main.py <<'EOF'
from http.server import BaseHTTPRequestHandler, HTTPServer

task = next(word for word in open("/proc/cmdline").read().split() if word.startswith("task="))

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(f"hello from {task}\n".encode())

HTTPServer(("", 80), Handler).serve_forever()
EOF
exec python3 /run/main.py
"#;

#[test]
#[ignore = "needs the lab"]
fn two_tasks_answer_and_are_stopped() {
    let variable = |name| std::env::var_os(name).unwrap_or_else(|| panic!("{name} names a file"));
    // SAFETY: the network of this thread, and of what it starts, changes, and no file descriptors.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    run("ip", "link set lo up");
    // Where nothing ever comes from will do for a network.
    run("ip", "link add up0 type dummy");
    run("ip", "link set up0 up");
    run("ip", "addr add 192.0.2.2/24 dev up0");
    run("ip", "route add default via 192.0.2.1 dev up0");

    let folder = tempfile::tempdir().unwrap();
    let task = folder.path().join("task");
    fs::write(&task, format!("#!/bin/sh -eu\n{TASK}")).unwrap();
    let tests = std::env::current_exe().unwrap();
    let example = tests.parent().unwrap().with_file_name("examples").join("two_tasks");
    let mut two_tasks = Command::new(example);
    two_tasks.arg("--kernel").arg(variable("SPARKLER_KERNEL"));
    two_tasks.arg("--initrd").arg(variable("SPARKLER_INITRD"));
    two_tasks.arg("--disk").arg(variable("SPARKLER_ROOT_DISK"));
    two_tasks.arg("--task").arg(&task).args(["--patience", "180"]);
    let output = two_tasks.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    for (number, port) in [(1, 8080), (2, 8081)] {
        let answer = format!("task {number} answers on port {port}: hello from task={number}");
        assert!(text.contains(&answer), "no {answer:?} in {text}");
        let cpu = number - 1;
        let end = format!("task {number} on CPU {cpu}: stopped");
        assert!(text.contains(&end), "no {end:?} in {text}");
        assert!(!text.contains(", 0.0ns of CPU time"), "{text}");
    }
}

#[track_caller]
fn run(program: &str, words: &str) {
    let status = Command::new(program).args(words.split_whitespace()).status().unwrap();
    assert!(status.success(), "{program} {words}: {status}");
}
