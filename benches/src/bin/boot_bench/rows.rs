//! Work that contestants do in turns.

use std::thread;
use std::time::{Duration, Instant};

use crate::contestants::{Contestant, Machine};
use crate::trace::{Trace, Watch};
use crate::usage::{Started, Usage};
use crate::{Bench, Result, milliseconds};

/// A machine that shows no sign of life for so long has hung.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks at the trace: its events bear their own time.
const LOOK: Duration = Duration::from_millis(2);

/// One kind of work, as each contestant does it.
pub(crate) struct Row {
    pub(crate) name: String,
    pub(crate) work: Work,
    /// Who does it, and with which machine.
    pub(crate) field: Vec<(Contestant, Machine)>,
}

/// What is done, and measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// From the process's start to the kernel's first instruction.
    FirstInstruction,
    /// A whole process; with marks, to the guest's first boot mark too.
    Boot { marks: bool },
    /// As many whole processes at once.
    AtOnce(usize),
}

impl Work {
    fn section(self) -> &'static str {
        match self {
            Self::FirstInstruction => "first instruction",
            Self::Boot { .. } => "boot",
            Self::AtOnce(_) => "at once",
        }
    }
}

/// Who fails at so many rows leaves all of them: it would cost the others' time.
const FAILURES: usize = 2;

/// Does all rows in each round. Who fails at a row leaves it, and the report says so.
pub(crate) fn run(bench: &mut Bench, title: &str, rows: &mut [Row]) -> Result<()> {
    let rounds = bench.rounds;
    let mut failures: Vec<Contestant> = Vec::new();
    for round in 1..=rounds {
        bench.progress(title, round, rounds);
        for Row { name, work, field } in rows.iter_mut() {
            let mut failed = Vec::new();
            for (contestant, machine) in field.iter() {
                if failures.iter().filter(|it| *it == contestant).count() >= FAILURES {
                    failed.push(*contestant);
                    continue;
                }
                if let Err(error) = once(bench, name, *work, *contestant, machine) {
                    bench.gap(&format!("{contestant}: {name}: {error}"))?;
                    failed.push(*contestant);
                    failures.push(*contestant);
                }
            }
            field.retain(|(contestant, _)| !failed.contains(contestant));
        }
    }
    Ok(())
}

fn once(
    bench: &mut Bench,
    row: &str,
    work: Work,
    contestant: Contestant,
    machine: &Machine,
) -> Result<()> {
    let (section, who) = (work.section(), contestant.to_string());
    match work {
        Work::FirstInstruction => {
            let time = first_instruction(bench, contestant, machine)?;
            bench.add(section, row, "first instruction, ms", &who, milliseconds(time))
        }
        Work::Boot { marks } => {
            let (init, usage) = boot(bench, contestant, machine, marks)?;
            if let Some(init) = init {
                bench.add(section, row, "init, ms", &who, milliseconds(init))?;
            }
            let Some(usage) = usage else { return Ok(()) };
            bench.add(section, row, "exit, ms", &who, milliseconds(usage.wall))?;
            bench.add(section, row, "CPU, ms", &who, milliseconds(usage.cpu))?;
            let peak = usage.peak_kib as f64 / 1024.0;
            bench.add(section, row, "peak resident, MiB", &who, peak)
        }
        Work::AtOnce(count) => {
            for wall in at_once(bench, contestant, machine, count)? {
                bench.add(section, row, "exit, ms", &who, milliseconds(wall))?;
            }
            Ok(())
        }
    }
}

fn first_instruction(bench: &Bench, contestant: Contestant, machine: &Machine) -> Result<Duration> {
    let trace = Trace::begin(Watch::FirstEntry)?;
    let mut process = contestant.start(machine, bench.scratch())?;
    let start = process.since_start();
    let seen = await_first(&trace, &mut process);
    process.kill()?;
    Ok(seen?.saturating_sub(start))
}

/// To the guest's mark, and to the end of the process if it ends with its guest.
fn boot(
    bench: &Bench,
    contestant: Contestant,
    machine: &Machine,
    marks: bool,
) -> Result<(Option<Duration>, Option<Usage>)> {
    let trace = if marks { Some(Trace::begin(Watch::Marks)?) } else { None };
    let mut process = contestant.start(machine, bench.scratch())?;
    let start = process.since_start();
    if !contestant.ends_at_reset() {
        let Some(trace) = trace else { return Err("it does not end when its guest does".into()) };
        let mark = await_first(&trace, &mut process);
        process.kill()?;
        return Ok((Some(mark?.saturating_sub(start)), None));
    }
    let usage = process.wait(PATIENCE)?;
    let mark = match &trace {
        Some(trace) => Some(trace.first()?.ok_or("its guest's init did not run")?),
        None => None,
    };
    Ok((mark.map(|mark| mark.saturating_sub(usage.start)), Some(usage)))
}

fn at_once(
    bench: &Bench,
    contestant: Contestant,
    machine: &Machine,
    count: usize,
) -> Result<Vec<Duration>> {
    let mut processes = Vec::new();
    for _ in 0..count {
        processes.push(contestant.start(machine, bench.scratch())?);
    }
    // A thread for each, so that the end of each is seen at once.
    let walls: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = processes
            .into_iter()
            .map(|process| {
                scope.spawn(move || process.wait(PATIENCE).map_err(|error| error.to_string()))
            })
            .collect();
        threads.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    walls
        .into_iter()
        .map(|wall| match wall {
            Ok(usage) => Ok(usage?.wall),
            Err(_) => Err("the thread that waited for it panicked".into()),
        })
        .collect()
}

/// Waits for the first event of a process's machine.
pub(crate) fn await_first(trace: &Trace, process: &mut Started) -> Result<Duration> {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        if let Some(first) = trace.first()? {
            return Ok(first);
        }
        if process.ended()? {
            return trace.first()?.ok_or_else(|| "it ended before its guest came so far".into());
        }
        // The trace can only be looked at again and again, and the processors are the machine's.
        thread::sleep(LOOK);
    }
    Err(format!("nothing was seen of its guest for {} s", PATIENCE.as_secs()).into())
}
