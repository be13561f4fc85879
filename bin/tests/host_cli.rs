//! Hosts that are not fit, made with a `/dev` of the test's own.

#![allow(clippy::unwrap_used, reason = "a panic here is a failed test")]

mod common;

use std::{fs, os::unix::fs::PermissionsExt, process::Command};

use common::{BINARY, Files, Run, run};

/// Runs `sparkler`, as a user who is not root, after `prepare` has filled an empty `/dev`.
fn run_on(prepare: &str, args: &[&str]) -> Run {
    let files = Files::new();
    let binary = files.text("sparkler");
    // Where anybody may execute it.
    fs::copy(BINARY, &binary).unwrap();
    fs::set_permissions(files.path(""), fs::Permissions::from_mode(0o755)).unwrap();
    files.guest();
    let user = "setpriv --reuid=65534 --regid=65534 --clear-groups";
    let script = format!("mount -t tmpfs none /dev && {prepare} && exec {user} \"$@\"");
    let guest = files.text("guest.elf");
    let args = args.iter().map(|&arg| if arg == "GUEST" { guest.as_str() } else { arg });
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script, "sh", &binary]).args(args);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    run(command)
}

const NO_KVM: &str = "true";
const NO_PERMISSION: &str = "touch /dev/kvm && chmod 600 /dev/kvm";
const NO_KVM_AT_ALL: &str = "touch /dev/kvm && chmod 666 /dev/kvm";

#[test]
#[ignore = "needs root"]
fn run_is_refused_with_one_line() {
    run_on(NO_KVM, &["run", "GUEST"]).assert_refused("there is no /dev/kvm");
    run_on(NO_PERMISSION, &["run", "GUEST"]).assert_refused("no permission on /dev/kvm");
    run_on(NO_KVM_AT_ALL, &["run", "GUEST"]).assert_refused("kvm");
    run_on(NO_KVM, &["run", "GUEST", "--rng"]).assert_refused("/dev/urandom for --rng");
    run_on(NO_KVM, &["check", "--cpuid"]).assert_refused("there is no /dev/kvm");
    run_on(NO_KVM, &["demo"]).assert_refused("there is no /dev/kvm");
}

#[test]
#[ignore = "needs root"]
fn check_says_what_to_do() {
    for (prepare, advice) in [
        (NO_KVM, "kvm_intel"),
        (NO_PERMISSION, "usermod -aG kvm"),
        (NO_PERMISSION, "u:USER:rw"),
        (NO_KVM, "--device /dev/kvm"),
    ] {
        let text = run_on(prepare, &["check"]);
        assert_eq!(text.code, Some(1), "{text:?}");
        // An answer goes over several lines.
        let words: Vec<_> = text.stdout.split_whitespace().collect();
        assert!(words.join(" ").contains(advice), "{text:?}");
        assert!(text.stdout.ends_with("not fit: there is no usable KVM.\n"), "{text:?}");
        let json = run_on(prepare, &["check", "--json"]);
        assert_eq!(json.code, Some(1), "{json:?}");
        let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
        assert_eq!(report["fit"], false, "{report}");
    }
}
