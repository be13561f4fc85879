//! Help, usage and bad input. Needs no KVM: all of it is refused before KVM is asked.

mod common;

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use common::{BINARY, Files, run, sparkler};

const COMMANDS: [&str; 5] = ["run", "demo", "check", "completions", "man"];

#[test]
fn help_and_version_go_to_standard_output() {
    for args in
        [&["--help"][..], &["-h"], &["help"], &["run", "-h"], &["run", "--help"], &["help", "run"]]
    {
        let help = run(sparkler(args.iter().copied()));
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(help.stdout.contains("Usage: sparkler"), "{args:?}: {}", help.stdout);
    }
    let version = run(sparkler(["--version"]));
    assert_eq!(version.code, Some(0));
    assert_eq!(version.stdout, concat!("sparkler ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn help_lists_every_command_with_a_description() {
    let help = run(sparkler(["--help"])).stdout;
    for command in COMMANDS {
        let line = help.lines().find(|line| line.trim_start().starts_with(command));
        assert!(line.unwrap().split_whitespace().count() > 3, "{line:?}");
    }
}

#[test]
fn help_of_run_documents_keys_and_exit_codes() {
    let help = run(sparkler(["run", "--help"])).stdout;
    for text in [
        "Ctrl-A x",
        "124 ",
        "125 ",
        "126 ",
        "128+n",
        "--timeline",
        "--json",
        "Examples:",
        ",ro \\\n",
    ] {
        assert!(help.contains(text), "no {text:?} in {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
}

#[test]
fn without_arguments_it_prints_help_and_fails() {
    let bare = run(sparkler([]));
    assert_eq!((bare.code, bare.stdout.as_str()), (Some(2), ""));
    assert!(bare.stderr.contains("Usage: sparkler"), "{bare:?}");
}

#[test]
fn usage_errors_are_one_line() {
    run(sparkler(["frob"])).assert_refused("frob");
    run(sparkler(["run"])).assert_refused("KERNEL");
    run(sparkler(["run", "a", "b"])).assert_refused("'b'");
    run(sparkler(["run", "--memry", "1G", "k"])).assert_refused("'--memory'");
    run(sparkler(["run", "k", "--memory"])).assert_refused("--memory");
    run(sparkler(["run", "k", "-m", "1M", "-m", "2M"])).assert_refused("--memory");
    run(sparkler(["completions", "tcl"])).assert_refused("bash");
    run(sparkler(["man", "frob"])).assert_refused("frob");
}

#[test]
fn sizes_that_are_no_sizes_are_refused() {
    let files = Files::new();
    let guest = files.guest();
    for size in ["abc", "", "-1", "1.5G", "256X", "99999999999999999999", "99999999999T", "0x10"] {
        run(sparkler(["run", &guest, "--memory", size])).assert_refused("--memory");
    }
    for count in ["x", "", "-1", "4294967296", "1.0"] {
        run(sparkler(["run", &guest, "--vcpus", count])).assert_refused("number from 1 to 64");
    }
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    for (flag, value, range) in [
        ("--net", "user,mtu=70000", "68 to 65535"),
        ("--net", "tap=t,queues=17", "1 to 16"),
        ("--disk", "second,queues=0", "second,queues=0"),
        ("--disk", "d,queues=70000", "1 to 16"),
        ("--disk", "second,serial=more than 20 characters", "'second,serial=more"),
    ] {
        run(sparkler(["run", "k", flag, value])).assert_refused(range);
    }
}

#[test]
fn machines_that_cannot_be_are_refused() {
    let files = Files::new();
    let guest = files.guest();
    for size in ["0", "1M", "1024T", "4097K"] {
        run(sparkler(["run", &guest, "-m", size])).assert_refused("memory");
    }
    for count in ["0", "10000", "4294967295"] {
        run(sparkler(["run", &guest, "-c", count])).assert_refused(count);
    }
    for (flag, value, word) in [
        ("--cpu-affinity", "0=8191", "this process may use"),
        ("--cpu-affinity", "1=0", "no vCPU 1"),
        ("--cpu-affinity", "net=0", "devices"),
        ("--nice", "20", "-20 to 19"),
        ("--thread-prefix", "much too long", "names of threads"),
    ] {
        run(sparkler(["run", &guest, flag, value])).assert_refused(word);
    }
    let long = "x".repeat(100_000);
    run(sparkler(["run", &guest, "--cmdline", &long])).assert_refused("command line");
    run(sparkler(["run", &guest, "--cmdline", "tab\x1bescape"])).assert_refused("command line");
    run(sparkler(["run", &guest, "-m", "64M,hugepages=4M"])).assert_refused("hugepages=2M");
    run(sparkler(["run", &guest, "-m", "63M,hugepages=2M"])).assert_refused("multiples of 2 MiB");
    let file = files.file("small", b"less than a page");
    let memory = format!("16M,file={file}");
    run(sparkler(["run", &guest, "-m", &memory])).assert_refused("has 16 bytes");
    run(sparkler(["run", &guest, "-m", "16M,file=/no/such"])).assert_refused("/no/such");
    run(sparkler(["run", &guest, "--kernel-cache", "/no/such"])).assert_refused("/no/such");
    run(sparkler(["run", &guest, "--kernel-cache", "/dev/null"])).assert_refused("directory");
    run(sparkler(["run", &guest, "--kernel-cache", "/tmp"])).assert_refused("chmod go-w");
    assert_eq!(files.names(), ["guest.elf", "small"]);
}

#[test]
fn files_that_are_no_kernels_are_refused_by_name() {
    let files = Files::new();
    let missing = files.text("missing");
    let directory = files.text("");
    let empty = files.file("empty", b"");
    let text = files.file("text", b"This is a text, and no kernel at all.\n");
    let zeros = files.file("zeros", &[0; 65536]);
    for path in [&missing, &directory, &empty, &text, &zeros, "/dev/zero"] {
        run(sparkler(["run", path])).assert_refused(path);
    }
    assert_eq!(files.names(), ["empty", "text", "zeros"]);
}

#[test]
fn initrds_that_cannot_be_read_are_refused_by_name() {
    let files = Files::new();
    let guest = files.guest();
    for path in [&files.text("missing"), &files.text(""), &files.file("empty", b"")] {
        run(sparkler(["run", &guest, "--initrd", path])).assert_refused(path);
    }
}

#[test]
fn a_disk_that_looks_like_another_format_is_told_of() {
    let files = Files::new();
    let guest = files.guest();
    let mut image = b"QFI\xfb\0\0\0\x03".to_vec();
    image.resize(4096, 0);
    // Refused for another reason, so that no KVM is needed.
    let refused = run(sparkler(["run", &guest, "-c", "0", "--disk", &files.file("image", &image)]));
    let lines: Vec<_> = refused.stderr.lines().collect();
    let [doubt, refusal] = lines[..] else { panic!("{refused:?}") };
    assert!(doubt.contains("image begins like a qcow2 image and is taken as raw"), "{doubt}");
    assert!(refusal.contains("0 vCPUs"), "{refusal}");
    let raw = files.file("raw", &[0; 4096]);
    run(sparkler(["run", &guest, "-c", "0", "--disk", &raw])).assert_refused("0 vCPUs");
}

#[test]
fn a_bzimage_cannot_be_mapped_unless_it_is_kept_unpacked() {
    let files = Files::new();
    let mut image = vec![0; 8192];
    image[0x1f1] = 1;
    image[0x1fe..0x208].copy_from_slice(b"\x55\xaa\xeb\x66HdrS\x0f\x02");
    let (guest, packed) = (files.guest(), files.file("bzImage", &image));
    let args = |kernel| ["run", kernel, "-c", "0", "--map-kernel"];
    let refused = run(sparkler(args(&packed)));
    assert!(refused.stderr.starts_with("sparkler: --map-kernel has no effect"), "{refused:?}");
    assert_eq!(refused.stderr.lines().count(), 2, "{refused:?}");
    run(sparkler(args(&guest))).assert_refused("0 vCPUs");
    fs::create_dir(files.path("cache")).unwrap();
    fs::set_permissions(files.path("cache"), fs::Permissions::from_mode(0o700)).unwrap();
    let kept = sparkler(args(&packed).into_iter().chain(["--kernel-cache", &files.text("cache")]));
    assert_eq!(run(kept).stderr.lines().count(), 1);
}

#[test]
fn without_file_descriptors_it_says_what_it_wanted_them_for() {
    let files = Files::new();
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 4; exec \"$0\" \"$@\"", BINARY, "run", &files.guest()]);
    let none = run({
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    });
    assert_eq!((none.code, none.stderr.lines().count()), (Some(125), 1), "{none:?}");
    assert!(none.stderr.contains("standard input and output as the console"), "{none:?}");
}

#[test]
fn a_refusal_as_json_says_the_same() {
    let refused = run(sparkler(["run", "/no/such/kernel", "--json"]));
    assert_eq!(refused.code, Some(2));
    let json = refused.json();
    assert_eq!((&json["outcome"], &json["exit_code"]), (&"refused".into(), &2.into()));
    let first = refused.stderr.lines().next().unwrap();
    assert_eq!(first.strip_prefix("sparkler: "), json["message"].as_str());
}

#[test]
fn completions_know_the_commands_and_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(sparkler(["completions", shell]));
        assert_eq!(script.code, Some(0), "{shell}: {}", script.stderr);
        assert!(script.stdout.contains("timeline"), "{shell}");
        assert!(COMMANDS.iter().all(|command| script.stdout.contains(command)), "{shell}");
    }
}

#[test]
fn every_manual_page_has_its_name() {
    let main = run(sparkler(["man"]));
    assert!(main.stdout.contains(".TH sparkler 1"), "{main:?}");
    for command in COMMANDS {
        let page = run(sparkler(["man", command]));
        assert_eq!(page.code, Some(0), "{command}: {}", page.stderr);
        assert!(page.stdout.contains(&format!(".TH sparkler-{command} 1")), "{}", page.stdout);
    }
}

#[test]
fn a_reader_that_has_gone_is_no_failure() {
    for args in [&["man", "run"][..], &["completions", "bash"], &["run", "--help"]] {
        let mut command = sparkler(args.iter().copied());
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let gone = run({
            command.stdout(writer);
            command
        });
        assert_eq!((gone.code, gone.stderr.as_str()), (Some(0), ""), "{args:?}");
    }
}

#[test]
fn a_full_disk_is_a_failure() {
    let mut command = sparkler(["man"]);
    command.stdout(Stdio::from(File::options().write(true).open("/dev/full").unwrap()));
    let full = run(command);
    assert_eq!(full.code, Some(125), "{full:?}");
    assert!(full.stderr.contains("No space left"), "{full:?}");
}
