//! The terminal: raw while the guest has it, and as it was at every other moment.

mod common;

use common::{BINARY, Files, WITH_SHORT_FILES, finish, pty::Pty};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

/// Prints a line, then spins for good with interrupts off, and never reads its UART.
const HANG: &str = "test=hello end=hang";
const BANNER: &str = "sparkler guest:";

#[test]
#[ignore = "needs /dev/kvm"]
fn restored_when_the_guest_ends() {
    let (files, pty) = (Files::new(), Pty::new());
    let before = pty.modes();
    let child = pty.spawn(["run", &files.guest(), "--cmdline", "code=7"]);
    assert_eq!(finish(child).code, Some(7));
    assert_eq!(pty.modes(), before);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn restored_after_a_crash() {
    let (files, mut pty) = (Files::new(), Pty::new());
    let before = pty.modes();
    let child = pty.spawn(["run", &files.guest(), "--cmdline", "end=triple"]);
    pty.wait_for("sparkler: ");
    assert_eq!(finish(child).code, Some(126));
    assert_eq!(pty.modes(), before);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn restored_after_each_signal_that_ends_it() {
    let files = Files::new();
    for (signal, code) in
        [(Signal::HUP, 129), (Signal::INT, 130), (Signal::QUIT, 131), (Signal::TERM, 143)]
    {
        let mut pty = Pty::new();
        let before = pty.modes();
        let child = pty.spawn(["run", &files.guest(), "--cmdline", HANG]);
        pty.wait_for(BANNER);
        assert!(pty.is_raw());
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(finish(child).code, Some(code), "{signal:?}");
        assert_eq!(pty.modes(), before, "{signal:?}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn keys_end_a_guest_that_hangs_and_reads_nothing() {
    let (files, mut pty) = (Files::new(), Pty::new());
    let before = pty.modes();
    let child = pty.spawn(["run", &files.guest(), "--cmdline", HANG]);
    pty.wait_for(BANNER);
    assert!(pty.is_raw());
    // More than the guest's UART and any buffer on the way take; Ctrl-C goes to the guest too.
    pty.type_keys(&[b'\x03'; 300_000]);
    pty.type_keys(b"\x01h");
    pty.wait_for("end the machine");
    pty.type_keys(b"\x01x");
    assert_eq!(finish(child).code, Some(124));
    assert_eq!(pty.modes(), before);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_failure_is_a_line_of_its_own_on_a_raw_terminal() {
    let (files, mut pty) = (Files::new(), Pty::new());
    let (guest, disk) = (files.guest(), files.file("disk", &[0; 1 << 20]));
    let args = ["run", &guest, "--disk", &disk, "--cmdline", "test=diskfill"];
    let child = pty.spawn_program("sh", WITH_SHORT_FILES.into_iter().chain(args));
    let screen = pty.wait_for("File too large (os error 27)\r\n");
    let before = screen.split_once("its guest sees I/O errors").unwrap().0;
    let (_, line) = before.rsplit_once('\n').unwrap();
    assert!(before.trim_end_matches(line).ends_with("\r\n"), "{screen:?}");
    assert!(line.starts_with("sparkler: "), "{screen:?}");
    assert_ne!(finish(child).code, Some(0));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn restored_while_stopped_and_raw_again_afterwards() {
    let (files, mut pty) = (Files::new(), Pty::new());
    let before = pty.modes();
    let child = pty.spawn(["run", &files.guest(), "--cmdline", HANG]);
    let pid = Pid::from_child(&child);
    pty.wait_for(BANNER);
    for _ in 0..3 {
        pty.wait_until_raw();
        kill_process(pid, Signal::TSTP).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
        assert_eq!(pty.modes(), before);
        kill_process(pid, Signal::CONT).unwrap();
    }
    pty.wait_until_raw();
    pty.type_keys(b"\x01x");
    assert_eq!(finish(child).code, Some(124));
    assert_eq!(pty.modes(), before);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_background_job_leaves_the_terminal_alone_and_runs() {
    let (files, mut pty) = (Files::new(), Pty::new());
    let before = pty.modes();
    let guest = files.guest();
    // `set -m`: the job gets a process group of its own, in the background of this terminal.
    let script = "set -m; \"$0\" run \"$1\" --cmdline \"$2\" & echo job $!.; wait $!; exit $?";
    let child = pty.spawn_program("sh", ["-c", script, BINARY, &guest, HANG]);
    let screen = pty.wait_for(BANNER);
    let job = screen.split_once("job ").unwrap().1.split_once('.').unwrap().0;
    let job = Pid::from_raw(job.parse().unwrap()).unwrap();
    assert_eq!(pty.modes(), before);
    kill_process(job, Signal::TERM).unwrap();
    assert_eq!(finish(child).code, Some(143));
    assert_eq!(pty.modes(), before);
}
