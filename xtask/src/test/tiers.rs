//! The tiers, one function each.

use anyhow::Result;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use super::harness::{Harness, Need, Programs};
use crate::cargo::{self, LAB_TARGET, Workspace};
use crate::host::Kvm;
use crate::lab::{
    Binary, Ended, Finished, GUEST_INITRD, GUEST_KERNEL, Guest, Io, Lab, ROOT_DISK, Run, Shared,
};
use crate::report::{Counts, Report};
use crate::{demo, setup, step};

/// For one test program: the slowest takes about a minute in the lab.
const LIMIT: Duration = Duration::from_secs(600);

/// How often a program is tried in the lab. QEMU's emulation of nested virtualization has its faults: now and
/// then the *lab's* kernel crashes in `__svm_vcpu_run` or stands still, or a guest that runs well a dozen times
/// does ([`GUEST_FAULTS`]). A test that fails in any other way is not tried again.
const LAB_TRIES: u32 = 3;

/// How tests and the binary tell of a triple fault, and tests of a guest that says nothing for minutes.
const GUEST_FAULTS: [&str; 3] =
    ["reason: TripleFault", "crashed with a triple fault", "the guest stood still"];

/// The variable that says for how long data on disks is verified.
const VERIFY_SECONDS: &str = "SPARKLER_VERIFY_SECONDS";

/// The variable that says that networks are to be tested at length.
const THOROUGH: &str = "SPARKLER_THOROUGH";

pub(super) fn t0(report: &mut Report) -> Result<()> {
    let common = ["--workspace", "--all-features", "--no-fail-fast"];
    let mut tests = cargo::cargo("test");
    tests.args(common).args(["--lib", "--bins", "--tests", "--examples"]);
    run_harness(report, "T0", "unit and integration tests", &mut tests)?;
    run_harness(
        report,
        "T0",
        "documentation tests",
        cargo::cargo("test").args(common).arg("--doc"),
    )?;

    let workspace = Workspace::load()?;
    let what = format!("build with Rust {}", workspace.msrv);
    if let Err(error) = setup::rust_toolchain(&workspace.msrv) {
        report.skipped("T0", &what, 1, &format!("{error:#}"));
        return Ok(());
    }
    let mut check = cargo::cargo_of(&workspace.msrv, "check");
    check.args(["--all-features", "--target-dir"]).arg(workspace.target.join("msrv"));
    for package in &workspace.published {
        check.args(["--package", package]);
    }
    run_one(report, "T0", &what, &mut check)?;
    Ok(())
}

pub(super) fn t1(report: &mut Report) -> Result<()> {
    let kvm = Kvm::probe();
    let guest = Guest::prepare(Binary::LeaveOut);
    for harness in Programs::build(None)?.harnesses {
        let lacking = match (harness.need(), &guest) {
            // The next tier's.
            (Need::StockLinux | Need::DebianRoot | Need::Network, _) => continue,
            (Need::Kvm | Need::RootAndKvm, _) if kvm == Kvm::None => kvm.to_string(),
            (Need::Root | Need::RootAndKvm, _) if !rustix::process::geteuid().is_root() => {
                "not root".to_owned()
            }
            (Need::Kernel, Err(error)) => format!("{error:#}"),
            _ => {
                let mut run = on_this_host(&harness, guest.as_ref().ok());
                run_harness(report, "T1", &format!("{}, {kvm}", harness.title()), &mut run)?;
                continue;
            }
        };
        report.skipped("T1", &harness.title(), harness.tests, &lacking);
    }
    Ok(())
}

pub(super) fn t2(report: &mut Report, kvm_in_lab: bool) -> Result<()> {
    let kvm = Kvm::probe();
    if kvm == Kvm::Hardware {
        t2_on_this_host(report)?;
    }
    let in_lab = |harness: &&Harness| match harness.need() {
        Need::StockLinux | Need::DebianRoot | Need::Network => true,
        Need::Kvm => kvm_in_lab || kvm == Kvm::None,
        Need::Root | Need::RootAndKvm | Need::Kernel => false,
    };
    let lab = match Lab::prepare(Binary::Build) {
        Ok(lab) => lab,
        Err(error) if error.is::<setup::NeedsRoot>() => {
            let harnesses = Programs::build(None)?.harnesses;
            let tests: usize = harnesses.iter().filter(in_lab).map(|h| h.tests).sum();
            report.skipped("T2", "everything in the lab", tests + 1, &format!("{error:#}"));
            return Ok(());
        }
        Err(error) => return Err(error),
    };

    let mut boot = vec![OsString::from("sparkler")];
    boot.extend(demo::stock_boot(GUEST_KERNEL.as_ref(), GUEST_INITRD.as_ref()));
    let boot = Run { patience: Some(patience()), ..Run::new(boot, LIMIT) };
    run_in_lab(report, &lab, "boot of Debian's kernel, lab", &boot, |ended, _| {
        Counts::one(ended == Some(Ended::Exit(demo::EXIT_CODE)))
    })?;

    let programs = Programs::build(Some(LAB_TARGET))?;
    for harness in programs.harnesses.iter().filter(in_lab) {
        let title = format!("{}, lab", harness.title());
        // One machine at a time: the lab has two slow processors.
        let command = vec![
            harness.built.executable.clone().into(),
            "--ignored".into(),
            "--test-threads=1".into(),
        ];
        let mut run = Run { patience: Some(patience()), ..Run::new(command, limit()) };
        let own = programs.binaries.iter().filter(|binary| harness.starts(binary));
        // At the same path as here: that is what the test was compiled with.
        let files = own.chain([&harness.built]).map(|built| &built.executable);
        run.files = files.map(|file| Shared { host: file.clone(), guest: file.clone() }).collect();
        if matches!(harness.need(), Need::DebianRoot | Need::Network) {
            if root_disk(report, lab.guest(), &title, harness)?.is_none() {
                continue;
            }
            run.add_root_disk(lab.guest())?;
            for name in [VERIFY_SECONDS, THOROUGH] {
                run.env.extend(std::env::var(name).map(|it| (name.to_owned(), it)));
            }
        }
        if harness.need() == Need::Network {
            run.add_network_programs()?;
        }
        run_in_lab(report, &lab, &title, &run, |ended, output| {
            Counts::of_output(output, ended == Some(Ended::Exit(0)))
        })?;
    }
    Ok(())
}

fn t2_on_this_host(report: &mut Report) -> Result<()> {
    let guest = Guest::prepare(Binary::LeaveOut)?;
    for harness in Programs::build(None)?.harnesses {
        let title = format!("{}, hardware KVM", harness.title());
        let mut run = on_this_host(&harness, Some(&guest));
        match harness.need() {
            // One of them is its guest's init, and so must be linked statically, as it is in the lab.
            Need::StockLinux if harness.built.name == "linux_examples" => {
                report.skipped("T2", &title, harness.tests, "run in the lab");
                continue;
            }
            Need::StockLinux => {}
            Need::Network if !rustix::process::geteuid().is_root() => {
                report.skipped("T2", &title, harness.tests, "not root");
                continue;
            }
            Need::DebianRoot | Need::Network => {
                if harness.need() == Need::Network {
                    setup::network_programs()?;
                }
                let Some(disk) = root_disk(report, &guest, &title, &harness)? else { continue };
                run.env(ROOT_DISK, disk);
            }
            Need::Kvm | Need::Root | Need::RootAndKvm | Need::Kernel => continue,
        }
        run_harness(report, "T2", &title, &mut run)?;
    }
    Ok(())
}

/// The disk that this harness needs; skips the harness if only root could make it.
fn root_disk(
    report: &mut Report,
    guest: &Guest,
    title: &str,
    harness: &Harness,
) -> Result<Option<PathBuf>> {
    match guest.root_disk() {
        Ok(disk) => Ok(Some(disk)),
        Err(error) if error.is::<setup::NeedsRoot>() => {
            report.skipped("T2", title, harness.tests, &format!("{error:#}"));
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// For one test program, with the time that was asked for beyond the usual.
fn limit() -> Duration {
    let more = std::env::var(VERIFY_SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    LIMIT + Duration::from_secs(more.unwrap_or(0))
}

/// For one test of a program: the slowest takes a minute in the lab.
fn patience() -> Duration {
    limit() - LIMIT + Duration::from_secs(240)
}

pub(super) fn t3(report: &mut Report, seconds: u32) -> Result<()> {
    let folder = cargo::root().join("fuzz");
    let mut check = cargo::cargo("check");
    check.arg("--manifest-path").arg(folder.join("Cargo.toml"));
    if let Err(error) = setup::rust_toolchain("nightly").and_then(|()| setup::fuzz_tools()) {
        report.skipped("T3", "fuzz targets", 1, &format!("{error:#}"));
        return Ok(());
    }
    run_one(report, "T3", "fuzz targets compile", &mut check)?;

    let list = step::run("listing fuzz targets", cargo::cargo("fuzz").arg("list"))?.stdout;
    for target in list.split_whitespace() {
        let mut fuzz = cargo::cargo_of("nightly", "fuzz");
        fuzz.args(["run", target, "--", &format!("-max_total_time={seconds}")]);
        run_one(report, "T3", &format!("fuzz {target}, {seconds} s"), &mut fuzz)?;
    }
    Ok(())
}

fn on_this_host(harness: &Harness, guest: Option<&Guest>) -> Command {
    let mut run = Command::new("timeout");
    run.arg(limit().as_secs().to_string()).arg(&harness.built.executable).arg("--ignored");
    run.current_dir(&harness.built.folder);
    if let Some(guest) = guest {
        run.env("SPARKLER_KERNEL", &guest.kernel.vmlinuz);
        run.env("SPARKLER_INITRD", &guest.initrd);
    }
    run
}

/// Runs something that prints `test result:` lines.
fn run_harness(
    report: &mut Report,
    tier: &'static str,
    what: &str,
    command: &mut Command,
) -> Result<()> {
    measure(report, tier, what, command, Counts::of_output)?;
    Ok(())
}

/// Runs something that counts as one test, and tells whether it went well.
pub(super) fn run_one(
    report: &mut Report,
    tier: &'static str,
    what: &str,
    command: &mut Command,
) -> Result<bool> {
    measure(report, tier, what, command, |_, well| Counts::one(well))
}

fn measure(
    report: &mut Report,
    tier: &'static str,
    what: &str,
    command: &mut Command,
    count: fn(&str, bool) -> Counts,
) -> Result<bool> {
    let begun = Instant::now();
    let output = step::run_any(&format!("{tier} {what}"), command)?;
    let well = output.status.success();
    if !well {
        eprint!("{}", output.transcript);
        eprintln!("error: `{}` failed ({})", step::describe(command), output.status);
    }
    report.ran(tier, what, count(&output.transcript, well), begun.elapsed());
    Ok(well)
}

/// Runs something in a lab of its own; a lab that broke down is a failure like any other.
fn run_in_lab(
    report: &mut Report,
    lab: &Lab,
    what: &str,
    run: &Run,
    count: impl FnOnce(Option<Ended>, &str) -> Counts,
) -> Result<()> {
    let begun = Instant::now();
    let mut tries = 1..=LAB_TRIES;
    let (ended, output) = loop {
        let last = tries.next().is_none_or(|number| number == LAB_TRIES);
        match step::during(&format!("T2 {what}"), || lab.run(run, Io::Capture)) {
            Ok(finished) => {
                let Some(why) = lab_fault(&finished).filter(|_| !last) else {
                    break (Some(finished.ended), finished.output);
                };
                let said = finished.output;
                eprintln!("warning: {what}: {why}; once more; it had said:\n{said}");
            }
            Err(error) if last => break (None, format!("{error:#}\n")),
            Err(error) => eprintln!("warning: {what}: the lab itself died; once more\n{error:#}"),
        }
    };
    let counts = count(ended, &output);
    if counts.failed > 0 {
        eprint!("{output}");
        eprintln!("error: {what} failed ({ended:?})");
    }
    report.ran("T2", what, counts, begun.elapsed());
    Ok(())
}

/// What the emulation did to a run, if it did anything.
fn lab_fault(finished: &Finished) -> Option<&'static str> {
    let crashed = || GUEST_FAULTS.iter().any(|words| finished.output.contains(words));
    match finished.ended {
        Ended::TimedOut => Some("the lab stood still"),
        Ended::Exit(code) if code != 0 && crashed() => Some("a guest crashed or stood still"),
        Ended::Exit(_) => None,
    }
}
