//! A network that goes away.

use std::fs;
use std::thread;
use std::time::Duration;

use sparkler::virtio::net::Net;

use crate::host::{HOST, TAP, enter_namespace, run, set_up_tap};
use crate::machine::Machine;

const SCRIPT: &str = r#"
address
ping -q -i 0.2 -c 3 $HOST | grep transmitted
echo connected
# Most of it meets a device with no network behind it.
ping -q -i 0.2 -c 40 -W 1 $HOST | grep transmitted
echo still here
ip link set eth0 down
ip link set eth0 up
echo up again
"#;

/// How long one looks, and how much of it the interface's threads may work.
const WATCHED: Duration = Duration::from_secs(3);
const MOST: Duration = Duration::from_millis(500);

#[test]
#[ignore = "needs the lab"]
fn a_tap_that_is_deleted_leaves_the_guest_running_and_nobody_spinning() {
    enter_namespace();
    let net = Net::tap(TAP).unwrap();
    set_up_tap(1500);
    let mut machine = Machine::start(net, &format!("HOST={HOST}\n{SCRIPT}"), |machine| machine);
    machine.hear("connected");
    run("ip", &format!("link delete {TAP}"));
    let before = processor_time();
    thread::sleep(WATCHED); // It is the time in which nothing may happen that is measured.
    let used = processor_time() - before;
    assert!(used < MOST, "{used:?} of {WATCHED:?}");
    let text = machine.end();
    assert!(text.contains("40 packets transmitted") && text.contains("up again"), "{text}");
}

/// Of all threads of network interfaces in this process.
fn processor_time() -> Duration {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    let stats = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("stat")).ok());
    let ticks: u64 = stats
        .filter(|stat| stat.contains("(virtio-net"))
        .map(|stat| {
            let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
            // utime and stime, in hundredths of a second on every x86 Linux.
            fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
        })
        .sum();
    Duration::from_millis(ticks * 10)
}
