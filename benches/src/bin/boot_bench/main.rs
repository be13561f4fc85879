//! What a boot costs, next to the floor and to other monitors: `cargo xtask bench` runs it, on this host
//! with the built-in guest, and with Linux in the lab or on hardware KVM.
//!
//! ```text
//! boot_bench --set=guest|linux|linux-once --rounds=N --out=FILE
//! ```
//! The contestants take turns in every round. Each figure of each run becomes a line of FILE, for
//! `boot_report`. Which files and programs take part, the environment says: `SPARKLER` (or the `PATH`),
//! `MICROVM_KERNEL`, `STOCK_KERNEL`, `STOCK_VMLINUX`, `QUICK_INITRD`, `GUEST_INITRD`, `BOOT_DISK`,
//! `ALIOTH`, `FIRECRACKER`, `CLOUD_HYPERVISOR`, `CROSVM`.

mod contestants;
mod guest_rows;
mod linux_rows;
mod many;
mod rows;
mod trace;
mod usage;

use std::error::Error;
use std::fs;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;

use sparkler::host::HostKind;
use sparkler_benches::samples::{Line, Sample, Sink};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let (mut set, mut rounds, mut out) = (None, 11, None);
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--set", name)) => set = Some(name.to_owned()),
            Some(("--rounds", count)) => rounds = count.parse()?,
            Some(("--out", path)) => out = Some(PathBuf::from(path)),
            _ => return Err(format!("no flag {argument}; there are --set, --rounds, --out").into()),
        }
    }
    let folder = tempfile::tempdir()?;
    let mut bench = Bench {
        rounds,
        sink: Sink::create(&out.ok_or("--out=FILE is needed")?)?,
        folder: folder.path().to_owned(),
    };
    let set = set.ok_or("--set=guest, --set=linux or --set=linux-once is needed")?;
    bench.describe_host(&set)?;
    match set.as_str() {
        "guest" => guest_rows::run(&mut bench),
        "linux" => linux_rows::run(&mut bench),
        "linux-once" => linux_rows::run_once(&mut bench),
        _ => Err("--set=guest, --set=linux or --set=linux-once is needed".into()),
    }
}

/// One run of the whole program.
struct Bench {
    rounds: u32,
    sink: Sink,
    /// For files of this run.
    folder: PathBuf,
}

impl Bench {
    fn add(&mut self, section: &str, row: &str, metric: &str, who: &str, value: f64) -> Result<()> {
        let (section, row) = (section.to_owned(), row.to_owned());
        let (metric, who) = (metric.to_owned(), who.to_owned());
        Ok(self.sink.add(&Line::Sample(Sample { section, row, metric, who, value }))?)
    }

    /// Something that will be missing from the report, which says so.
    fn gap(&mut self, why: &str) -> Result<()> {
        eprintln!("  gap: {why}");
        Ok(self.sink.add(&Line::Gap(why.to_owned()))?)
    }

    fn fact(&mut self, name: &str, value: &str) -> Result<()> {
        Ok(self.sink.add(&Line::Fact(name.to_owned(), value.to_owned()))?)
    }

    /// What the figures were taken on.
    fn describe_host(&mut self, set: &str) -> Result<()> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name"));
        let model = model.map_or("unknown", |model| model.trim_start_matches([':', ' ', '\t']));
        let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
        let count = thread::available_parallelism()?;
        let kvm = match HostKind::detect() {
            HostKind::Pvm => "PVM, KVM without hardware virtualization",
            _ if std::env::var_os("SPARKLER_EMULATED").is_some() => "KVM in the lab",
            _ => "hardware KVM",
        };
        let (rounds, release) = (self.rounds, release.trim());
        let host = format!("{count} × {model}, Linux {release}, {kvm}; {rounds} rounds");
        self.fact(&format!("{set} rows"), &host)
    }

    /// What is done just now: one line that is written over on a terminal.
    fn progress(&self, title: &str, done: u32, of: u32) {
        let mut out = std::io::stderr();
        if out.is_terminal() {
            let _ = write!(out, "\r{title}: {done} of {of}\x1b[K");
        } else {
            let _ = writeln!(out, "{title}: {done} of {of}");
        }
        if done == of && out.is_terminal() {
            let _ = writeln!(out);
        }
    }

    fn scratch(&self) -> &Path {
        &self.folder
    }
}

fn milliseconds(duration: std::time::Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
