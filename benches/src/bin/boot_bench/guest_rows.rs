//! What can be measured with the built-in guest, on any KVM.
//!
//! The large kernel is the built-in guest with 53 MB of random bytes behind it, as much as Debian's
//! uncompressed kernel has: it loads like one and runs on every KVM, also where stock kernels do not.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use sparkler_benches::{LARGE_KERNEL_ADDRESS, LARGE_KERNEL_PAYLOAD, large_kernel};

use crate::contestants::{Contestant, Machine};
use crate::rows::{self, Row, Work};
use crate::usage::{self, Resident};
use crate::{Bench, Result, many};

/// How long a guest is left alone before its monitor's memory is looked at: it halts within a few milliseconds, or
/// some hundred if it reads 53 MB before, and tells nobody.
const SETTLE: Duration = Duration::from_millis(1500);

pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let large = large_kernel(sparkler_guest::ELF);
    let tiny_path = bench.scratch().join("tiny.elf");
    let large_path = bench.scratch().join("large.elf");
    fs::write(&tiny_path, sparkler_guest::ELF)?;
    fs::write(&large_path, &large)?;

    many::in_process(bench, "tiny guest", sparkler_guest::ELF)?;
    many::in_process(bench, "53 MB guest", &large)?;
    drop(large);
    many::per_second(bench)?;
    many::alive(bench)?;

    let contestants = Contestant::all();
    let field = |kernel: &Path, cmdline: &str| -> Vec<(Contestant, Machine)> {
        let usual = contestants.iter().filter(|it| it.has_acpi());
        // The floor knows the exit port alone, which is where the guest ends by itself.
        let cmdline = |it| if it == Contestant::Floor { "quiet" } else { cmdline };
        let all = usual.map(|it| (*it, Machine::new(kernel, cmdline(*it))));
        all.filter(|(it, machine)| it.fits(machine)).collect()
    };
    let whole = |name: &str, kernel: &Path, work| Row {
        name: name.into(),
        work,
        field: field(kernel, "quiet end=reset"),
    };
    let mut rows = [
        whole("tiny guest", &tiny_path, Work::Boot { marks: false }),
        whole("53 MB guest", &large_path, Work::Boot { marks: false }),
        whole("tiny guest, 8 at once", &tiny_path, Work::AtOnce(8)),
        whole("53 MB guest, 8 at once", &large_path, Work::AtOnce(8)),
    ];
    rows::run(bench, "whole processes", &mut rows)?;

    // A kernel looks at its text: this one does so on purpose, or there would be nothing to have in common.
    let (address, bytes) = (LARGE_KERNEL_ADDRESS, LARGE_KERNEL_PAYLOAD);
    let reads = format!("quiet test=read at={address} bytes={bytes} end=halt");
    for (name, kernel, cmdline) in
        [("tiny guest", &tiny_path, "quiet test=halt"), ("53 MB guest", &large_path, &reads)]
    {
        for (contestant, machine) in field(kernel, cmdline) {
            if contestant == Contestant::Floor {
                continue; // It knows no guest that stays.
            }
            if let Err(error) = memory(bench, name, contestant, &machine) {
                bench.gap(&format!("{contestant}: memory, {name}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// Of one monitor whose guest is idle, and of a second one with the same kernel beside it.
fn memory(bench: &mut Bench, row: &str, contestant: Contestant, machine: &Machine) -> Result<()> {
    let mut processes = Vec::new();
    let mut accounts = Vec::new();
    for _ in 0..2 {
        processes.push(contestant.start(machine, bench.scratch())?);
        // Nothing tells from outside that a guest has halted.
        thread::sleep(SETTLE);
        let each: Result<Vec<Resident>> = processes
            .iter()
            .map(|process| usage::resident(process.id(), u64::from(machine.memory_mib) << 10))
            .collect();
        accounts.push(each);
    }
    for process in processes {
        process.kill()?;
    }
    add_memory(bench, row, &contestant.to_string(), accounts)
}

/// The accounts are of one machine alone, and then of each of two.
pub(crate) fn add_memory(
    bench: &mut Bench,
    row: &str,
    who: &str,
    accounts: Vec<Result<Vec<Resident>>>,
) -> Result<()> {
    let mut totals = Vec::new();
    for account in accounts {
        let account = account?;
        if let [alone] = account.as_slice() {
            let private = alone.private as f64;
            bench.add("memory", row, "private beside guest memory, KiB", who, private)?;
        }
        totals.push(account.iter().map(|each| each.proportional).sum::<u64>() as f64 / 1024.0);
    }
    if let [one, two] = totals.as_slice() {
        bench.add("memory", row, "first machine, all, MiB", who, *one)?;
        bench.add("memory", row, "second machine, all, MiB", who, two - one)?;
    }
    Ok(())
}
