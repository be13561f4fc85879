//! What a boot costs, next to the floor and to QEMU's microvm: `cargo run --release -p sparkler-benches
//! --bin boot [-- --runs=N] [--sparkler=PATH]`.
//!
//! Every row is measured in one run, the contestants taking turns, and printed as medians. In process:
//! from the first call to the guest's first instruction (a write to the boot-mark port). Whole process:
//! wall time of a command that boots the built-in guest, which ends itself at once. Memory: what is
//! resident in the monitor's process while its guest idles, without the guest's own memory.
//!
//! The large kernel is the built-in guest with 53 MB of random bytes behind it, as much as Debian's
//! uncompressed kernel has: it loads like one and runs on every KVM, also where stock kernels do not.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use sparkler::{Kernel, MemorySize, Milestone, Vm};
use sparkler_benches::floor::{self, Config};
use sparkler_benches::large_kernel;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const MEMORY_MIB: u64 = 128;

fn main() -> Result<()> {
    let (mut runs, mut sparkler) = (41, PathBuf::from("target/release/sparkler"));
    for argument in std::env::args().skip(1) {
        match argument.split_once('=') {
            Some(("--runs", count)) => runs = count.parse()?,
            Some(("--sparkler", path)) => sparkler = path.into(),
            _ => {
                return Err(
                    format!("no flag {argument}; there are --runs=N and --sparkler=PATH").into()
                );
            }
        }
    }
    let directory = tempfile::tempdir()?;
    let tiny = directory.path().join("tiny.elf");
    let large = directory.path().join("large.elf");
    fs::write(&tiny, sparkler_guest::ELF)?;
    fs::write(&large, large_kernel(sparkler_guest::ELF))?;

    println!("medians of {runs} runs, the contestants taking turns\n");
    println!("to the first guest instruction, in process, 1 vCPU, {MEMORY_MIB} MiB");
    for (name, path) in [("tiny guest", &tiny), ("53 MB guest", &large)] {
        let floor: Contestant<'_> = ("floor (with irqchip)", Box::new(|| in_process_floor(path)));
        let ours: Contestant<'_> = ("sparkler", Box::new(|| in_process_sparkler(path)));
        compare(name, runs, vec![floor, ours])?;
    }

    println!("\nwhole process, 1 vCPU, {MEMORY_MIB} MiB");
    if !sparkler.is_file() {
        println!(
            "  skipped: {} is not there; `cargo build --release` makes it",
            sparkler.display()
        );
        return Ok(());
    }
    for (name, path) in [("tiny guest", &tiny), ("53 MB guest", &large)] {
        let mut contestants: Vec<Contestant<'_>> = vec![
            ("floor (with irqchip)", Box::new(|| wall(&mut floor_command(path)?))),
            (
                "sparkler run",
                Box::new(|| wall(&mut sparkler_command(&sparkler, path, "end=reset"))),
            ),
        ];
        if wall(Command::new("qemu-system-x86_64").arg("--version")).is_ok() {
            contestants.push(("QEMU microvm", Box::new(|| wall(&mut qemu_command(path)))));
        } else {
            println!("  QEMU is not installed and does not take part");
        }
        compare(name, runs, contestants)?;
    }
    println!("\nresident memory of the process while the guest idles, without guest memory");
    println!("  {:28} {:8} KiB", "sparkler run", resident(&sparkler, &tiny)?);
    Ok(())
}

type Contestant<'a> = (&'static str, Box<dyn FnMut() -> Result<Duration> + 'a>);

/// Prints the median of each, and its ratio to that of the first.
fn compare(row: &str, runs: usize, mut contestants: Vec<Contestant<'_>>) -> Result<()> {
    let mut times = vec![Vec::with_capacity(runs); contestants.len()];
    for _ in 0..runs {
        for ((_, run), times) in contestants.iter_mut().zip(&mut times) {
            times.push(run()?);
        }
    }
    println!("  {row}");
    let mut first = None;
    for ((name, _), times) in contestants.iter().zip(&mut times) {
        times.sort();
        let median = times.get(times.len() / 2).copied().unwrap_or_default().as_secs_f64();
        let base = *first.get_or_insert(median);
        println!("    {name:26} {:9.3} ms   x {:.2}", median * 1e3, median / base);
    }
    Ok(())
}

fn in_process_floor(path: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let elf = fs::read(path)?;
    let read = begin.elapsed();
    let memory = usize::try_from(MEMORY_MIB << 20)?;
    let config = Config { elf: &elf, cmdline: "quiet", memory, irqchip: true, until_exit: false };
    let report = floor::run(&config)?;
    Ok(read + report.until("first mark").ok_or("the guest wrote no mark")?)
}

fn in_process_sparkler(path: &Path) -> Result<Duration> {
    let begin = Instant::now();
    let kernel = Kernel::file(path)?;
    let open = begin.elapsed();
    let vm = Vm::builder().memory(MemorySize::mib(MEMORY_MIB)).kernel(kernel).cmdline("quiet");
    let running = vm.build()?.start()?;
    running.wait()?;
    let mark = running.timeline().at(Milestone::Mark(1)).ok_or("the guest wrote no mark")?;
    Ok(open + mark)
}

fn wall(command: &mut Command) -> Result<Duration> {
    let begin = Instant::now();
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = command.status()?;
    let elapsed = begin.elapsed();
    if status.success() { Ok(elapsed) } else { Err(format!("{command:?}: {status}").into()) }
}

fn floor_command(kernel: &Path) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe()?.with_file_name("floor"));
    command.args(["--irqchip", "--exit", "--json"]).arg(kernel);
    Ok(command)
}

fn sparkler_command(sparkler: &Path, kernel: &Path, cmdline: &str) -> Command {
    let mut command = Command::new(sparkler);
    command.arg("run").arg(kernel).arg("-m").arg(format!("{MEMORY_MIB}M"));
    command.arg("--cmdline").arg(format!("quiet {cmdline}"));
    command
}

fn qemu_command(kernel: &Path) -> Command {
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-M", "microvm,pit=off,pic=off,rtc=off", "-accel", "kvm"]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]);
    command.args(["-serial", "stdio", "-m", &MEMORY_MIB.to_string()]);
    command.arg("-append").arg("quiet end=reset").arg("-kernel").arg(kernel);
    command
}

/// KiB, from the kernel's own account of each mapping. Guest memory is the one mapping of its size.
fn resident(sparkler: &Path, kernel: &Path) -> Result<u64> {
    let mut child = sparkler_command(sparkler, kernel, "test=hang").stdin(Stdio::null()).spawn()?;
    let account = loop {
        let account = fs::read_to_string(format!("/proc/{}/smaps", child.id()))?;
        if account.contains("kvm-vcpu") {
            break account;
        }
        if let Some(status) = child.try_wait()? {
            return Err(format!("sparkler ended: {status}").into());
        }
    };
    child.kill()?;
    child.wait()?;
    let guest = format!("{} kB", MEMORY_MIB << 10);
    let (mut total, mut in_guest) = (0, false);
    for line in account.lines() {
        match line.split_once(':') {
            Some(("Size", size)) => in_guest = size.trim() == guest,
            Some(("Rss", size)) if !in_guest => {
                total += size.trim().trim_end_matches(" kB").parse::<u64>()?;
            }
            _ => {}
        }
    }
    Ok(total)
}
