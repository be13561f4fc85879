//! `cargo xtask bench`: boots, next to the bare-KVM floor and to other monitors.

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use super::machine_files::MachineFiles;
use super::peers::Peers;
use super::with;
use crate::cargo::{self, LAB_TARGET, Workspace};
use crate::host::Kvm;
use crate::lab::{Binary, Ended, Guest, Io, Lab, Run, Shared, Timers};
use crate::{setup, step};

/// QEMU's emulation of nested virtualization has its faults: now and then the lab's kernel crashes or
/// stands still. So every lab measures a few rounds only, and one that breaks down is tried again.
const LAB_ROUNDS: u32 = 5;
const LAB_TRIES: u32 = 3;

/// With two of them it stands still now and then, the one waiting for the other, which runs a guest: the
/// more often, the quieter this host is.
const LAB_PROCESSORS: u8 = 1;

/// A lab that says nothing for so long has broken down.
const LAB_PATIENCE: Duration = Duration::from_secs(240);

#[derive(Args)]
pub(crate) struct BootOptions {
    /// How often each contestant does each row
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Two rounds: figures within a few minutes
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Only these rows, for a look at some of them
    #[arg(long = "rows", value_name = "SET", value_enum, default_values_t = Set::ALL)]
    sets: Vec<Set>,
    /// Where table, charts and figures go [default: target/bench]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Write the report as a page, boot-times.md with its charts, into this folder too
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Rows that are measured together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Set {
    /// The built-in guest, on this host's KVM or in the lab
    Guest,
    /// First instructions and boots of Linux, on hardware KVM or in the lab
    Linux,
    /// Linux eight times at once, its exits, its memory
    LinuxOnce,
}

impl Set {
    const ALL: [Self; 3] = [Self::Guest, Self::Linux, Self::LinuxOnce];

    fn name(self) -> &'static str {
        match self {
            Self::Guest => "guest",
            Self::Linux => "linux",
            Self::LinuxOnce => "linux-once",
        }
    }
}

/// Measures, prints a table, and writes a report.
pub(crate) fn run(options: &BootOptions) -> Result<ExitCode> {
    let rounds = if options.quick { 2 } else { options.rounds };
    let target = Workspace::load()?.target;
    let out = std::path::absolute(options.out.clone().unwrap_or(target.join("bench")))?;
    fs::create_dir_all(&out)?;
    let bench = Bench::prepare(out)?;

    let kvm = Kvm::probe();
    let hardware = kvm == Kvm::Hardware;
    let mut figures = Vec::new();
    for set in &options.sets {
        let (here, rounds) = match set {
            Set::Guest => (kvm != Kvm::None, rounds),
            Set::Linux => (hardware, rounds),
            Set::LinuxOnce => (hardware, rounds.div_ceil(5)),
        };
        let at_a_time = if here { rounds } else { LAB_ROUNDS };
        for part in 0..rounds.div_ceil(at_a_time) {
            let rounds = at_a_time.min(rounds - part * at_a_time);
            figures.push(bench.measure(here, set.name(), rounds, part)?);
        }
    }
    bench.report(&figures, options)
}

/// All that takes part, on this host.
struct Bench {
    lab: Lab,
    peers: Peers,
    files: MachineFiles,
    /// The folder of the benchmark's own programs.
    programs: PathBuf,
    out: PathBuf,
}

impl Bench {
    /// Installs and builds what is missing.
    fn prepare(out: PathBuf) -> Result<Self> {
        setup::peers()?;
        let mut build = cargo::cargo("build");
        build.args(["--release", "--target", LAB_TARGET, "--package", "sparkler-benches"]);
        build.args(["--bin", "boot_bench", "--bin", "floor", "--bin", "boot_report"]);
        let built = cargo::build("building the benchmark", &mut build)?;
        let program = built.first().context("cargo built no benchmark")?;
        let programs = program.executable.parent().context("a program without a folder")?;
        let lab = Lab::around(Guest::prepare(Binary::Build)?)?;
        let files = MachineFiles::prepare(lab.guest())?;
        let peers = Peers::prepare(lab.guest().cache())?;
        Ok(Self { lab, peers, files, programs: programs.to_owned(), out })
    }

    /// Lets the benchmark run one set of rows, here or in the lab, and tells where the figures are.
    fn measure(&self, here: bool, set: &str, rounds: u32, part: u32) -> Result<PathBuf> {
        let file = self.out.join(format!("{set}-{part}.jsonl"));
        let words = [format!("--set={set}"), format!("--rounds={rounds}")];
        if here {
            self.on_this_host(&words, &file)?;
            return Ok(file);
        }
        for attempt in 1..=LAB_TRIES {
            match self.in_the_lab(&words, &file) {
                Ok(()) => return Ok(file),
                Err(error) if attempt == LAB_TRIES => return Err(error),
                Err(error) => eprintln!("{error:#}\nonce more, in a new lab"),
            }
        }
        bail!("no attempt was made")
    }

    fn on_this_host(&self, words: &[String], file: &Path) -> Result<()> {
        let mut bench = Command::new(self.programs.join("boot_bench"));
        bench.args(words).arg(with("--out=", file));
        let sparkler = self.lab.guest().sparkler.as_deref().context("no sparkler")?;
        bench.env("SPARKLER", sparkler);
        bench.envs(self.peers.variables()).envs(self.files.variables());
        let status = bench.status().context("cannot run the benchmark")?;
        anyhow::ensure!(status.success(), "the benchmark failed ({status})");
        Ok(())
    }

    fn in_the_lab(&self, words: &[String], file: &Path) -> Result<()> {
        let script = r#"mount -t tracefs tracefs /sys/kernel/tracing && modprobe tun &&
            exec /root/boot_bench --out=/results/figures "$@""#;
        let mut command: Vec<OsString> = ["sh", "-c", script, "bench"].map(OsString::from).to_vec();
        command.extend(words.iter().map(OsString::from));
        let results = tempfile::tempdir()?;
        let mut run = Run {
            timeout: None,
            patience: Some(LAB_PATIENCE),
            results: Some(results.path().to_owned()),
            smp: LAB_PROCESSORS,
            timers: Timers::Exact,
            ..Run::new(command, Duration::ZERO)
        };
        for program in ["boot_bench", "floor"] {
            let guest = Path::new("/root").join(program);
            run.files.push(Shared { host: self.programs.join(program), guest });
        }
        self.peers.add_to(&mut run)?;
        self.files.add_to(&mut run);
        match self.lab.run(&run, Io::Show)?.ended {
            Ended::Exit(0) => {
                fs::copy(results.path().join("figures"), file)?;
                Ok(())
            }
            ended => bail!("the benchmark failed in the lab ({ended:?})"),
        }
    }

    fn report(&self, figures: &[PathBuf], options: &BootOptions) -> Result<ExitCode> {
        let mut report = Command::new(self.programs.join("boot_report"));
        report.arg(with("--out=", &self.out));
        if let Some(page) = &options.report {
            let words: Vec<_> = env::args().skip(1).collect();
            report.arg(with("--page=", page));
            report.arg(format!("--command=cargo xtask {}", words.join(" ")));
        }
        let sparkler = self.lab.guest().sparkler.as_deref().context("no sparkler")?;
        report.arg(format!("--fact=binary, bytes={}", fs::metadata(sparkler)?.len()));
        report.arg(format!("--fact=stock kernel={}", self.lab.guest().kernel.package));
        for (name, value) in self.files.facts().into_iter().chain(self.peers.facts()) {
            report.arg(format!("--fact={name}={value}"));
        }
        let status = report.args(figures).status();
        let status = status.with_context(|| format!("cannot run {}", step::describe(&report)))?;
        Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
