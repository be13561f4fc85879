//! Many machines in one process.

use std::fs;
use std::time::{Duration, Instant};

use sparkler::{Kernel, MemorySize, Milestone, RunningVm, Vm};
use sparkler_benches::floor::{self, Config};

use crate::{Bench, Result, milliseconds};

const MEMORY_MIB: u64 = 128;

/// How many machines are alive at once.
const ALIVE: u32 = 1000;

/// How many machines are made and dropped for one figure.
const LOOP: u32 = 20;

/// To the first guest instruction, in process, and the whole life of a machine; floor and ours in turns.
pub(crate) fn in_process(bench: &mut Bench, row: &str, elf: &[u8]) -> Result<()> {
    let path = bench.scratch().join("in-process.elf");
    fs::write(&path, elf)?;
    let section = "in process";
    // What takes milliseconds can be done more often than what takes seconds.
    let rounds = 4 * bench.rounds;
    for round in 1..=rounds {
        bench.progress(&format!("in process, {row}"), round, rounds);
        for (who, once) in [("floor", floor_once as Once), ("sparkler", sparkler_once)] {
            let begin = Instant::now();
            let first = once(&path)?;
            let whole = begin.elapsed();
            bench.add(section, row, "first instruction, ms", who, milliseconds(first))?;
            bench.add(section, row, "life of a machine, ms", who, milliseconds(whole))?;
        }
    }
    Ok(())
}

/// Machines that are created, run to their first instruction and dropped, one after another.
pub(crate) fn per_second(bench: &mut Bench) -> Result<()> {
    let path = bench.scratch().join("many.elf");
    fs::write(&path, sparkler_guest::ELF)?;
    let rounds = bench.rounds.div_ceil(4);
    for round in 1..=rounds {
        bench.progress("many machines, one after another", round, rounds);
        for (who, once) in [("floor", floor_once as Once), ("sparkler", sparkler_once)] {
            let begin = Instant::now();
            for _ in 0..LOOP {
                once(&path)?;
            }
            let each = begin.elapsed().as_secs_f64() / f64::from(LOOP);
            bench.add("many", "one after another", "machines a second", who, 1.0 / each)?;
        }
    }
    Ok(())
}

/// What a process with many machines holds for each of them, their guests halted.
pub(crate) fn alive(bench: &mut Bench) -> Result<()> {
    bench.progress(&format!("{ALIVE} machines at once"), 1, 1);
    let before = Holdings::now()?;
    let mut machines = Vec::new();
    let begin = Instant::now();
    for _ in 0..ALIVE {
        machines.push(halted()?);
    }
    let took = begin.elapsed();
    let with_all = Holdings::now()?;
    let (row, each) = (format!("{ALIVE} alive at once"), f64::from(ALIVE));
    let kib = with_all.resident_kib.saturating_sub(before.resident_kib) as f64;
    bench.add("many", &row, "resident each, guest included, KiB", "sparkler", kib / each)?;
    let threads = with_all.threads.saturating_sub(before.threads) as f64;
    bench.add("many", &row, "threads each", "sparkler", threads / each)?;
    bench.add("many", &row, "to create each, ms", "sparkler", milliseconds(took) / each)?;
    let begin = Instant::now();
    drop(machines);
    bench.add("many", &row, "to drop each, ms", "sparkler", milliseconds(begin.elapsed()) / each)
}

type Once = fn(&std::path::Path) -> Result<Duration>;

fn floor_once(path: &std::path::Path) -> Result<Duration> {
    let begin = Instant::now();
    let elf = fs::read(path)?;
    let read = begin.elapsed();
    let memory = usize::try_from(MEMORY_MIB << 20)?;
    let config = Config { elf: &elf, cmdline: "quiet", memory, irqchip: true, until_exit: false };
    let report = floor::run(&config)?;
    Ok(read + report.until("first mark").ok_or("the guest wrote no mark")?)
}

fn sparkler_once(path: &std::path::Path) -> Result<Duration> {
    let begin = Instant::now();
    let kernel = Kernel::file(path)?;
    let open = begin.elapsed();
    let vm = Vm::builder().memory(MemorySize::mib(MEMORY_MIB)).kernel(kernel).cmdline("quiet");
    let running = vm.build()?.start()?;
    running.wait()?;
    let mark = running.timeline().at(Milestone::Mark(1)).ok_or("the guest wrote no mark")?;
    Ok(open + mark)
}

/// A small machine whose guest has halted for good; it has begun to run when this returns.
fn halted() -> Result<RunningVm> {
    let vm = Vm::builder().memory(MemorySize::mib(8)).kernel(Kernel::bytes(sparkler_guest::ELF));
    Ok(vm.cmdline("quiet test=halt").build()?.start()?)
}

struct Holdings {
    resident_kib: u64,
    threads: u64,
}

impl Holdings {
    fn now() -> Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let number = line.and_then(|line| line.split_whitespace().next());
            Ok(number.ok_or("no such field of a process")?.parse()?)
        };
        Ok(Self { resident_kib: field("VmRSS:")?, threads: field("Threads:")? })
    }
}
