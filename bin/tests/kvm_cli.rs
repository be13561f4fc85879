//! The built-in guest through the command line: exit codes, console, reports.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic here is a failed test")]

mod common;

use std::{
    fs::{self, File},
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write},
    process::{Child, Command, Stdio},
};

use common::{Files, Run, WITH_SHORT_FILES, finish, finish_raw, run, sparkler, spawn_with_input};
use rustix::{
    pipe::fcntl_setpipe_size,
    process::{Pid, Signal, kill_process},
};

/// Runs the built-in guest with this command line.
fn run_guest(cmdline: &str, more: &[&str]) -> Run {
    let files = Files::new();
    let guest = files.guest();
    run(sparkler(["run", guest.as_str(), "--cmdline", cmdline].iter().chain(more).copied()))
}

#[test]
#[ignore = "needs /dev/kvm"]
fn demo_is_right_in_all_it_does() {
    let demo = run(sparkler(["demo"]));
    assert_eq!((demo.code, demo.stderr.as_str()), (Some(0), ""), "{demo:?}");
    for text in ["hello", "four vCPUs", "guest entered", "All is well"] {
        assert!(demo.stdout.contains(text), "no {text:?} in {}", demo.stdout);
    }
    assert!(!demo.stdout.contains("WRONG"), "{}", demo.stdout);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn check_agrees_with_itself() {
    let text = run(sparkler(["check"]));
    let json = run(sparkler(["check", "--json"]));
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let fit = report["fit"].as_bool().unwrap();
    assert_eq!(json.code, Some(if fit { 0 } else { 1 }), "{json:?}");
    assert_eq!(text.code, json.code, "{text:?}");
    assert_eq!(fit, report["kind"] == "hardware", "{report}");
    // Whatever the kind, the built-in guest runs.
    assert!(report["instructions_per_second"]["kernel"].as_u64().unwrap() > 0, "{report}");
    for finding in report["findings"].as_array().unwrap() {
        assert!(text.stdout.contains(finding["question"].as_str().unwrap()), "{text:?}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn check_prints_what_cpuid_says_to_a_guest() {
    let text = run(sparkler(["check", "--cpuid"]));
    assert_eq!((text.code, text.stderr.as_str()), (Some(0), ""), "{text:?}");
    assert!(text.stdout.starts_with("0x00000000 0x00: eax=0x"), "{text:?}");
    // "KVMKVMKVM"
    let kvm = "0x40000000 0x00: eax=0x40000001 ebx=0x4b4d564b ecx=0x564b4d56 edx=0x0000004d";
    assert!(text.stdout.lines().any(|line| line == kvm), "{text:?}");
    let baseline = ["check", "--cpuid", "--cpu-template", "baseline"];
    let text = run(sparkler(baseline));
    let json = run(sparkler(baseline.into_iter().chain(["--json"])));
    let report: serde_json::Value = serde_json::from_str(&json.stdout).unwrap();
    let missing = report["missing"].as_array().unwrap().len();
    assert_eq!((text.code, json.code), (Some(i32::from(missing > 0)), text.code), "{report}");
    let lines = report["cpuid"].as_array().unwrap().len() + missing;
    assert_eq!(text.stdout.lines().count(), lines, "{text:?}");

    let ended = run_guest("code=4", &["--cpu-template", "baseline"]);
    assert_eq!(ended.code, Some(4), "{ended:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_exit_code_is_the_guests() {
    for code in [0, 1, 2, 42, 126, 255] {
        let ended = run_guest(&format!("code={code}"), &["--json"]);
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let json = ended.json();
        assert_eq!(json["outcome"], "exited", "{json}");
        assert_eq!(json["guest_exit_code"], code, "{json}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn power_off_and_reset_are_zero_and_told_apart_by_json() {
    for (end, outcome) in [("poweroff", "power-off"), ("reset", "reset"), ("acpi-reset", "reset")] {
        let ended = run_guest(&format!("end={end}"), &["--json"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let json = ended.json();
        assert_eq!((&json["outcome"], &json["guest_exit_code"]), (&outcome.into(), &().into()));
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_crash_is_126_and_explained() {
    let crashed = run_guest("end=triple", &["--json"]);
    assert_eq!(crashed.code, Some(126), "{crashed:?}");
    let json = crashed.json();
    assert_eq!(json["outcome"], "crashed", "{json}");
    assert!(json["message"].as_str().unwrap().contains("vCPU 0"), "{json}");
    assert!(crashed.stderr.lines().next().unwrap().starts_with("sparkler: "), "{crashed:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn standard_output_is_the_guests_alone() {
    let ended = run_guest("test=hello", &[]);
    assert!(ended.stdout.starts_with("sparkler guest:"), "{ended:?}");
    assert_eq!(ended.stderr, "");
    let silent = run_guest("test=hello", &["--no-console"]);
    assert_eq!((silent.stdout.as_str(), silent.stderr.as_str()), ("", ""));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn the_timeline_goes_from_memory_to_the_end() {
    let ended = run_guest("mark=7", &["--timeline", "--json"]);
    let names = ["memory mapped", "kernel loaded", "guest entered", "boot mark 7", "ended"];
    for name in names {
        assert!(ended.stderr.lines().any(|line| line.starts_with(name)), "no {name:?}: {ended:?}");
    }
    let json = ended.json();
    let events = json["timeline"].as_array().unwrap();
    let times: Vec<_> = events.iter().map(|e| e["at_ns"].as_u64().unwrap()).collect();
    assert!(times.is_sorted(), "{json}");
    for name in names {
        assert!(events.iter().any(|e| e["name"] == name), "no {name:?}: {json}");
    }
}

#[test]
#[ignore = "needs /dev/kvm"]
fn memory_is_backed_as_asked_for() {
    let files = Files::new();
    let file = files.file("memory", b"");
    File::options().write(true).open(&file).unwrap().set_len(16 << 20).unwrap();
    let of_file = format!("16M,file={file}");
    for memory in ["16M,shared,prefault,thp=off", "16M,thp=on", of_file.as_str()] {
        let ended = run_guest("test=memory expect_memory=16777216", &["-m", memory, "--json"]);
        assert_eq!(ended.code, Some(0), "{memory}: {ended:?}");
    }
    // The built-in guest lies at 1 MiB.
    let loaded = fs::read(&file).unwrap();
    assert_ne!(loaded[1 << 20..][..64], [0; 64]);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_pipe_ends_by_signal_with_the_shells_code() {
    let files = Files::new();
    let mut child = sparkler(["run", &files.guest(), "--cmdline", "test=hello end=hang", "--json"])
        .spawn()
        .unwrap();
    // The guest runs once it prints; then its end is a stop.
    let mut first = [0];
    let stdout = child.stdout.as_mut().unwrap();
    stdout.read_exact(&mut first).unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let stopped = finish(child);
    assert_eq!(stopped.code, Some(143), "{stopped:?}");
    let json = stopped.json();
    assert_eq!((&json["outcome"], &json["signal"]), (&"stopped".into(), &15.into()), "{json}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_pipe_is_passed_on_byte_by_byte_without_special_keys() {
    let files = Files::new();
    let mut command = sparkler(["run", &files.guest(), "--cmdline", "quiet test=echo code=9"]);
    let mut input: Vec<u8> = (5..=255).filter(|&byte| byte != b'q').collect();
    input.extend(b"\x01x\x01\x01\x00");
    let output = finish_raw(spawn_with_input(&mut command, [&input[..], b"q"].concat()));
    assert_eq!(output.status.code(), Some(9), "{output:?}");
    assert_eq!(output.stdout, input);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn more_input_than_the_guest_reads_waits_and_is_left() {
    const READ: usize = 5_000;
    let files = Files::new();
    let input: Vec<u8> =
        (0..10_000_000u32).map(|n| n.to_le_bytes()[usize::from(n % 3 == 0)]).collect();
    let hash = input.iter().take(READ).fold(0xcbf2_9ce4_8422_2325u64, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let mut command =
        sparkler(["run", &files.guest(), "--cmdline", &format!("quiet test=sink bytes={READ}")]);
    let ended = finish(spawn_with_input(&mut command, input));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stdout, format!("bytes={READ}\nfnv1a={hash:x}\n"));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_reader_that_takes_nothing_blocks_no_guest_and_what_it_missed_is_counted() {
    // More than the pipe and the buffer before it take together.
    const PRINTED: usize = 300_000;
    let files = Files::new();
    let (mut reader, writer) = io::pipe().unwrap();
    fcntl_setpipe_size(&writer, 4096).unwrap();
    let cmdline = format!("quiet test=print bytes={PRINTED} code=5");
    let mut command = sparkler(["run", &files.guest(), "--cmdline", &cmdline, "--json"]);
    let child = command.stdout(writer).spawn().unwrap();
    drop(command);
    let ended = finish(child);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    let dropped = ended.json()["stats"]["console_output_dropped"].as_u64().unwrap();
    assert!(dropped > 0, "{ended:?}");
    assert!(ended.stderr.starts_with(&format!("sparkler: {dropped} bytes ")), "{ended:?}");
    let mut taken = Vec::new();
    reader.read_to_end(&mut taken).unwrap();
    assert_eq!(taken.len() as u64 + dropped, PRINTED as u64);
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_reader_that_has_gone_ends_no_guest() {
    let files = Files::new();
    let (reader, writer) = io::pipe().unwrap();
    drop(reader);
    let mut command =
        sparkler(["run", &files.guest(), "--cmdline", "quiet test=print bytes=5000 code=3"]);
    let ended = finish(command.stdout(writer).spawn().unwrap());
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let said: Vec<_> = ended.stderr.lines().collect();
    let [failure, dropped] = said[..] else { panic!("{ended:?}") };
    assert!(failure.contains("Broken pipe"), "{ended:?}");
    assert!(dropped.starts_with("sparkler: 5000 bytes "), "{ended:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_full_disk_behind_standard_output_is_told_of() {
    let files = Files::new();
    let full = File::options().write(true).open("/dev/full").unwrap();
    let mut command =
        sparkler(["run", &files.guest(), "--cmdline", "quiet test=print bytes=5000 code=3"]);
    let ended = finish(command.stdout(full).spawn().unwrap());
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let said: Vec<_> = ended.stderr.lines().collect();
    let [failure, dropped] = said[..] else { panic!("{ended:?}") };
    assert!(failure.contains("No space left on device"), "{ended:?}");
    assert!(dropped.starts_with("sparkler: 5000 bytes "), "{ended:?}");
}

/// Runs a guest that fills a disk, which takes no more than its first 64 KiB.
fn run_with_a_disk_that_fails(stderr: impl Into<Stdio>) -> Child {
    let files = Files::new();
    let disk = files.file("disk", &[0; 1 << 20]);
    let mut command = Command::new("sh");
    command.args(WITH_SHORT_FILES).args(["run", &files.guest(), "--disk", &disk]);
    command.args(["--cmdline", "test=diskfill"]).stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(stderr).spawn().unwrap();
    // The files are open once the guest prints.
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    child
}

#[test]
#[ignore = "needs /dev/kvm"]
fn a_disk_that_fails_is_told_of_once() {
    let ended = finish(run_with_a_disk_that_fails(Stdio::piped()));
    assert_ne!(ended.code, Some(0), "{ended:?}");
    let said = ended.stderr.matches("its guest sees I/O errors: File too large").count();
    assert_eq!((said, ended.stderr.lines().count()), (1, 1), "{ended:?}");
}

#[test]
#[ignore = "needs /dev/kvm"]
fn what_standard_error_has_no_room_for_holds_up_no_disk_and_is_said_at_the_end() {
    let (mut reader, mut writer) = io::pipe().unwrap();
    let room = fcntl_setpipe_size(&writer, 4096).unwrap();
    writer.write_all(&vec![b'.'; room]).unwrap();
    let mut child = run_with_a_disk_that_fails(writer);
    // The guest hears of the failure, and gives up, while nobody reads the other pipe.
    let mut printed = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(printed.any(|line| line.unwrap().contains("failed")));
    let mut said = String::new();
    reader.read_to_string(&mut said).unwrap();
    assert_eq!(said.matches("its guest sees I/O errors").count(), 1, "{said}");
    assert_ne!(finish(child).code, Some(0));
}

#[test]
#[ignore = "needs /dev/kvm"]
fn files_are_read_and_written_from_where_they_stand() {
    let files = Files::new();
    files.file("in", b"skipped:helloq");
    files.file("out", b"before\n");
    let mut input = File::open(files.path("in")).unwrap();
    input.seek(SeekFrom::Start(8)).unwrap();
    let output = File::options().append(true).open(files.path("out")).unwrap();
    let mut command = sparkler(["run", &files.guest(), "--cmdline", "quiet test=echo"]);
    let ended = finish(command.stdin(input).stdout(output).spawn().unwrap());
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(fs::read(files.path("out")).unwrap(), b"before\nhello");
}
