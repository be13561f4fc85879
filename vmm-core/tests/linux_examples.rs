//! The examples that boot a stock Linux, as programs.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// An example's program; cargo builds them beside the tests.
fn example(name: &str) -> Command {
    let tests = std::env::current_exe().unwrap();
    Command::new(tests.parent().unwrap().with_file_name("examples").join(name))
}

/// A root that has nothing but the tools of a static busybox.
fn root() -> TempDir {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("bin")).unwrap();
    let paths = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    let busybox = paths.iter().find(|path| path.exists()).unwrap();
    fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
    for tool in ["sh", "cat", "sleep"] {
        symlink("busybox", root.path().join("bin").join(tool)).unwrap();
    }
    root
}

fn exec(root: &TempDir, timeout: &str, command: &[&str]) -> Output {
    let mut exec = example("exec");
    exec.arg("--kernel").arg(std::env::var_os("SPARKLER_KERNEL").unwrap());
    exec.arg("--root").arg(root.path()).args(["--timeout", timeout, "--"]).args(command);
    exec.output().unwrap()
}

#[test]
#[ignore = "needs the lab"]
fn boot_shows_the_console_and_the_outcome() {
    let mut boot = example("boot");
    for file in ["SPARKLER_KERNEL", "SPARKLER_INITRD"] {
        boot.arg(std::env::var_os(file).unwrap());
    }
    let output = boot.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("nproc: 2"), "{output:?}");
    let outcome = sparkler::Outcome::Exited(0).to_string();
    assert_eq!(text.lines().next_back(), Some(outcome.as_str()), "{output:?}");
}

#[test]
#[ignore = "needs the lab"]
fn exec_hands_on_output_and_exit_code() {
    let root = root();
    fs::write(root.path().join("note"), "from the root directory\n").unwrap();
    let script = "cat /note; echo \"two  spaces\"; echo gone >/note; exit 7";
    let output = exec(&root, "120", &["sh", "-c", script]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "from the root directory\ntwo  spaces\n", "{output:?}");
    // It was the machine's own copy.
    let note = fs::read_to_string(root.path().join("note")).unwrap();
    assert_eq!(note, "from the root directory\n");
}

#[test]
#[ignore = "needs the lab"]
fn exec_says_how_else_a_command_ends() {
    let root = root();
    let killed = exec(&root, "120", &["sh", "-c", "kill -9 $$"]);
    assert_eq!(killed.status.code(), Some(128 + 9), "{killed:?}");
    let missing = exec(&root, "120", &["/bin/nothing"]);
    assert_eq!(missing.status.code(), Some(127), "{missing:?}");
    let late = exec(&root, "15", &["sleep", "1000"]);
    assert_eq!(late.status.code(), Some(124), "{late:?}");
}
