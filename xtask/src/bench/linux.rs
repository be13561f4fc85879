//! `cargo xtask bench disk` and `bench net`: a stock kernel's devices, next to QEMU's microvm and Firecracker.

use anyhow::{Context, Result, bail};
use clap::Args;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::peers::add_qemu;
use super::with;
use crate::cargo::{self, LAB_TARGET};
use crate::host::Kvm;
use crate::lab::{Binary, Ended, Guest, Io, Lab, ROOT_DISK, Run, Shared, Timers};
use crate::setup;

/// A lab that says nothing for so long stands still: a monitor takes a minute or two for all rows.
const LAB_PATIENCE: Duration = Duration::from_secs(300);
/// It does so now and then, by faults in QEMU's emulation of nested virtualization. So every lab is for one
/// run of each monitor, and one that breaks down is tried again.
const LAB_TRIES: u32 = 3;

/// Another monitor's binary and kernel, which take part if these variables name them.
const FIRECRACKER: [(&str, &str); 2] =
    [("FIRECRACKER", "/root/firecracker"), ("FIRECRACKER_KERNEL", "/root/vmlinux")];

#[derive(Args)]
pub(crate) struct DiskOptions {
    /// How often each monitor runs
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// How long each job of fio runs
    #[arg(long, default_value_t = 4)]
    seconds: u32,
    /// Only the rows whose name contains this, like "read, 32"
    #[arg(long, default_value = "", hide_default_value = true)]
    row: String,
    /// Only the monitors whose name contains this
    #[arg(long, default_value = "", hide_default_value = true)]
    monitor: String,
}

#[derive(Args)]
pub(crate) struct NetOptions {
    /// How often each monitor runs
    #[arg(long, default_value_t = 3)]
    runs: u32,
    /// How long each job of iperf3 runs
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Only the rows whose name contains this, like "TCP in"
    #[arg(long, default_value = "", hide_default_value = true)]
    row: String,
    /// Only the monitors whose name contains this
    #[arg(long, default_value = "", hide_default_value = true)]
    monitor: String,
}

/// Measures disks, and prints a table.
pub(crate) fn disk(options: &DiskOptions) -> Result<ExitCode> {
    let DiskOptions { runs, seconds, row, monitor } = options;
    let only = [format!("--row={row}"), format!("--monitor={monitor}")];
    run("disk_linux", *runs, *seconds, &only)
}

/// Measures networks, and prints tables: of the built-in guest on this host, and of Linux.
pub(crate) fn net(options: &NetOptions) -> Result<ExitCode> {
    setup::network_programs()?;
    let NetOptions { runs, seconds, row, monitor } = options;
    let all = row.is_empty() && monitor.is_empty();
    if all && Kvm::probe() != Kvm::None {
        let mut frames = cargo::cargo("run");
        frames.args(["--release", "--package", "sparkler-benches", "--bin", "net_frames"]);
        let status = frames.status().context("cannot run cargo")?;
        anyhow::ensure!(status.success(), "the bench of the built-in guest failed ({status})");
    }
    let only = [format!("--row={row}"), format!("--monitor={monitor}")];
    run("net_linux", *runs, *seconds, &only)
}

fn run(program: &str, runs: u32, seconds: u32, only: &[String]) -> Result<ExitCode> {
    setup::peers()?;
    let guest = Guest::prepare(Binary::Build)?;
    let mut build = cargo::cargo("build");
    build.args(["--release", "--target", LAB_TARGET, "--package", "sparkler-benches"]);
    let built = cargo::build("building the benchmark", build.args(["--bin", program]))?;
    let bench = built.first().context("cargo built no benchmark")?.executable.clone();
    let words = [&[format!("--seconds={seconds}")], only].concat();
    match Kvm::probe() {
        Kvm::Hardware => on_this_host(&guest, &bench, runs, &words),
        Kvm::Pvm | Kvm::None => in_labs(guest, &bench, runs, &words),
    }
}

fn on_this_host(guest: &Guest, bench: &Path, runs: u32, words: &[String]) -> Result<ExitCode> {
    let sparkler = guest.sparkler.as_deref().and_then(Path::parent).context("no sparkler")?;
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = [sparkler.to_owned()].into_iter().chain(env::split_paths(&path));
    let status = Command::new(bench)
        .arg(format!("--runs={runs}"))
        .args(words)
        .env("PATH", env::join_paths(folders)?)
        .env("SPARKLER_KERNEL", &guest.kernel.vmlinuz)
        .env("SPARKLER_INITRD", &guest.initrd)
        .env(ROOT_DISK, guest.root_disk()?)
        .status()
        .context("cannot run the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn in_labs(guest: Guest, bench: &Path, runs: u32, words: &[String]) -> Result<ExitCode> {
    let lab = Lab::around(guest)?;
    let figures = tempfile::tempdir()?;
    let mut files = Vec::new();
    for number in 1..=runs {
        println!("lab {number} of {runs}");
        let file = figures.path().join(number.to_string());
        match in_a_lab(&lab, bench, words, &file) {
            Ok(true) => files.push(file),
            Ok(false) => {}
            Err(error) if files.is_empty() => return Err(error),
            // What the others have measured is worth a table.
            Err(error) => eprintln!("{error:#}"),
        }
    }
    anyhow::ensure!(!files.is_empty(), "the lab broke down in each try");
    let mut table = Command::new(bench);
    table.args(files.iter().map(|file| with("--table=", file)));
    let status = table.arg(format!("--runs={}", files.len())).args(words).status();
    let status = status.context("cannot run the benchmark")?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// One run of each monitor, its figures in `file`. False: the lab broke down in each try.
fn in_a_lab(lab: &Lab, bench: &Path, words: &[String], file: &Path) -> Result<bool> {
    let script = r#"mount -t debugfs debugfs /sys/kernel/debug && modprobe -a tun vhost_net &&
        exec /root/bench --runs=1 --out=/results/figures "$@""#;
    let mut command: Vec<OsString> = ["sh", "-c", script, "bench"].map(OsString::from).to_vec();
    command.extend(words.iter().map(OsString::from));
    let results = tempfile::tempdir()?;
    let (timeout, patience, timers) = (None, Some(LAB_PATIENCE), Timers::Exact);
    let mut run = Run { timeout, patience, timers, ..Run::new(command, Duration::ZERO) };
    run.results = Some(results.path().to_owned());
    run.add_root_disk(lab.guest())?;
    run.files.push(Shared { host: bench.to_owned(), guest: "/root/bench".into() });
    add_qemu(&mut run)?;
    run.add_network_programs()?;
    for (variable, place) in FIRECRACKER {
        if let Some(host) = env::var_os(variable) {
            run.files.push(Shared { host: std::path::absolute(host)?, guest: place.into() });
            run.env.push((variable.to_owned(), place.to_owned()));
        }
    }
    for attempt in 1..=LAB_TRIES {
        match lab.run(&run, Io::Show).map(|finished| finished.ended) {
            Ok(Ended::Exit(0)) => {
                fs::copy(results.path().join("figures"), file)?;
                return Ok(true);
            }
            Ok(Ended::Exit(code)) => bail!("the benchmark failed in the lab (exit code {code})"),
            Ok(Ended::TimedOut) => eprintln!("try {attempt} of {LAB_TRIES}: the lab stood still"),
            Err(error) => eprintln!("try {attempt} of {LAB_TRIES}: {error:#}"),
        }
    }
    Ok(false)
}
