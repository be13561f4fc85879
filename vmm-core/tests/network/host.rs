//! The host's side of a network.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::thread::{UnshareFlags, unshare_unsafe};

pub(crate) const TAP: &str = "tap0";
pub(crate) const HOST: &str = "10.0.0.1";
pub(crate) const GUEST: &str = "10.0.0.2";
pub(crate) const HOST6: &str = "fd00::1";
pub(crate) const GUEST6: &str = "fd00::2";

/// From now on the calling thread, and whatever it starts, is in a network namespace of its own, with
/// nothing but a loopback interface.
pub(crate) fn enter_namespace() {
    load("tun", "/dev/net/tun");
    // SAFETY: nothing but the network namespace of this thread changes; file descriptors stay shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
    // So that an IPv6 address can be used at once.
    fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0").unwrap();
    run("ip", "link set lo up");
}

/// Loads the module that makes `device`.
pub(crate) fn load(module: &str, device: &str) {
    if !Path::new(device).exists() {
        run("modprobe", module);
    }
}

/// Gives the tap its addresses.
pub(crate) fn set_up_tap(mtu: u16) {
    run("ip", &format!("link set {TAP} mtu {mtu}"));
    run("ip", &format!("addr add {HOST}/24 dev {TAP}"));
    run("ip", &format!("-6 addr add {HOST6}/64 dev {TAP}"));
    run("ip", &format!("link set {TAP} up"));
}

#[track_caller]
pub(crate) fn run(program: &str, words: &str) {
    let mut command = Command::new(program);
    let status = command.args(words.split_whitespace()).status();
    let status = status.unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(status.success(), "{program} {words}: {status}");
}
