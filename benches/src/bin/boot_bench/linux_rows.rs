//! What can be measured with Linux, on KVM with hardware virtualization or the like.

use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::contestants::{Contestant, Machine};
use crate::guest_rows::add_memory;
use crate::rows::{self, Row, Work, await_first};
use crate::trace::{Trace, Watch};
use crate::usage;
use crate::{Bench, Result};

/// The last is init's word for resetting the machine with its first instructions. It needs no interrupt
/// from the UART, which ACPI would tell of: with it, QEMU's microvm brings the emulated lab to a stop.
const CMDLINE: &str = "console=ttyS0 quiet panic=-1 mitigations=off pnpacpi=off reset-at-once";

/// How long after init's first instruction a monitor's memory is looked at: init has nothing left to
/// do by then, and nobody to tell.
const SETTLE: Duration = Duration::from_millis(300);

/// What the environment names.
struct Files {
    minimal: PathBuf,
    stock: PathBuf,
    stock_elf: PathBuf,
    /// Nothing but init.
    quick: PathBuf,
    /// Init, and the modules that the stock kernel reaches its disks with.
    with_modules: PathBuf,
    /// A root file system with the same init.
    disk: PathBuf,
}

impl Files {
    fn find() -> Result<Self> {
        let file = |name: &str| -> Result<PathBuf> {
            Ok(std::env::var_os(name).ok_or_else(|| format!("{name} must name a file"))?.into())
        };
        Ok(Self {
            minimal: file("MICROVM_KERNEL")?,
            stock: file("STOCK_KERNEL")?,
            stock_elf: file("STOCK_VMLINUX")?,
            quick: file("QUICK_INITRD")?,
            with_modules: file("GUEST_INITRD")?,
            disk: file("BOOT_DISK")?,
        })
    }

    fn with_initrd(&self, kernel: &Path) -> Machine {
        Machine { initrd: Some(self.quick.clone()), ..Machine::new(kernel, CMDLINE) }
    }

    /// The kernel for microVMs mounts its root by itself; a stock kernel's init does it.
    fn with_disk(&self, kernel: &Path) -> Machine {
        let disk = Some(self.disk.clone());
        if kernel == self.minimal {
            // What stands before `init=` is not given to it.
            let cmdline = format!("root=/dev/vda ro init=/init {CMDLINE}");
            return Machine { disk, ..Machine::new(kernel, &cmdline) };
        }
        // This init has something to say.
        let cmdline = CMDLINE.replace("pnpacpi=off reset-at-once", "root=/dev/vda ro end=reboot");
        let initrd = Some(self.with_modules.clone());
        Machine { disk, initrd, ..Machine::new(kernel, &cmdline) }
    }
}

/// Boots, and what leads to them.
pub(crate) fn run(bench: &mut Bench) -> Result<()> {
    let files = Files::find()?;
    let contestants = Contestant::all();
    let mut rows = first_instruction_rows(bench, &files, &contestants)?;
    rows.extend(boot_rows(&files, &contestants));
    rows::run(bench, "Linux", &mut rows)?;

    Ok(())
}

/// What needs no such repetition: eight machines at once, exits, memory.
pub(crate) fn run_once(bench: &mut Bench) -> Result<()> {
    let files = Files::find()?;
    let contestants = Contestant::all();
    let minimal = files.with_initrd(&files.minimal);
    let mut at_once = [Row {
        name: "kernel for microVMs, 8 at once".into(),
        work: Work::AtOnce(8),
        field: field(&contestants, &minimal, |it| it.ends_at_reset() && it.is_usual()),
    }];
    rows::run(bench, "Linux, 8 at once", &mut at_once)?;

    let stock = files.with_initrd(&files.stock_elf);
    for (name, machine) in [("kernel for microVMs", &minimal), ("stock vmlinux", &stock)] {
        for (contestant, machine) in field(&contestants, machine, |_| true) {
            // How the kernel came into memory makes no difference to what it does.
            if contestant.is_usual() {
                if let Err(error) = exits(bench, name, contestant, &machine) {
                    bench.gap(&format!("{contestant}: exits, {name}: {error}"))?;
                }
            }
            if let Err(error) = memory(bench, name, contestant, &machine) {
                bench.gap(&format!("{contestant}: memory, {name}: {error}"))?;
            }
        }
    }
    Ok(())
}

/// Whether a monitor takes part.
type Filter = fn(Contestant) -> bool;

/// All monitors that can boot this machine as far as can be told before.
fn field(
    contestants: &[Contestant],
    machine: &Machine,
    filter: Filter,
) -> Vec<(Contestant, Machine)> {
    let fit = contestants.iter().filter(|it| **it != Contestant::Floor);
    let fit = fit.filter(|it| it.fits(machine) && filter(**it));
    fit.map(|it| (*it, machine.clone())).collect()
}

fn first_instruction_rows(
    bench: &Bench,
    files: &Files,
    contestants: &[Contestant],
) -> Result<Vec<Row>> {
    let tiny = bench.scratch().join("tiny.elf");
    std::fs::write(&tiny, sparkler_guest::ELF)?;
    let kernels = [
        ("tiny guest", &tiny),
        ("kernel for microVMs, vmlinux", &files.minimal),
        ("stock vmlinux", &files.stock_elf),
        ("stock bzImage", &files.stock),
    ];
    Ok(kernels
        .map(|(name, kernel)| {
            let machine = Machine::new(kernel, "quiet");
            let fit = contestants.iter().copied().filter(|it| {
                it.enters_the_kernel()
                    && it.fits(&machine)
                    && it.has_acpi()
                    // These take ELF files only.
                    && (kernel != &files.stock
                        || !matches!(it, Contestant::Floor | Contestant::Firecracker))
            });
            let field = fit.map(|it| (it, machine.clone())).collect();
            Row { name: name.into(), work: Work::FirstInstruction, field }
        })
        .into())
}

fn boot_rows(files: &Files, contestants: &[Contestant]) -> Vec<Row> {
    let four = |machine: Machine| Machine { vcpus: 4, ..machine };
    let minimal = files.with_initrd(&files.minimal);
    let stock = files.with_initrd(&files.stock);
    let with_net = Machine { tap: Some("boot-bench".into()), ..minimal.clone() };
    let unpacks = |it: Contestant| it.has_acpi() && it != Contestant::Firecracker;
    let usual_unpacks =
        |it: Contestant| it.has_acpi() && it != Contestant::Firecracker && it.is_usual();
    let on_mmio_with_acpi =
        |it: Contestant| matches!(it, Contestant::Sparkler | Contestant::QemuMicrovm);
    let rows: [(&str, Machine, Filter); 8] = [
        ("kernel for microVMs", minimal.clone(), |_| true),
        ("kernel for microVMs, 4 vCPUs", four(minimal), Contestant::is_usual),
        ("kernel for microVMs, disk root", files.with_disk(&files.minimal), Contestant::is_usual),
        ("kernel for microVMs, network", with_net, Contestant::is_usual),
        ("stock bzImage", stock.clone(), unpacks),
        ("stock bzImage, 4 vCPUs", four(stock), usual_unpacks),
        ("stock vmlinux", files.with_initrd(&files.stock_elf), Contestant::has_acpi),
        ("stock bzImage, disk root", files.with_disk(&files.stock), on_mmio_with_acpi),
    ];
    let row = |(name, machine, filter): (&str, Machine, Filter)| Row {
        name: name.into(),
        work: Work::Boot { marks: true },
        field: field(contestants, &machine, filter),
    };
    rows.map(row).into()
}

/// Exits from the first instruction to init, by reason.
fn exits(bench: &mut Bench, row: &str, contestant: Contestant, machine: &Machine) -> Result<()> {
    let trace = Trace::begin(Watch::ExitsToMark)?;
    let marks = Trace::begin(Watch::Marks)?;
    let mut process = contestant.start(machine, bench.scratch())?;
    let mark = await_first(&marks, &mut process);
    process.kill()?;
    mark?;
    for (reason, count) in trace.exits()? {
        bench.add("exits", row, &reason, &contestant.to_string(), count.into())?;
    }
    Ok(())
}

/// Of one monitor whose guest's init has run, and of a second one with the same kernel beside it.
fn memory(bench: &mut Bench, row: &str, contestant: Contestant, machine: &Machine) -> Result<()> {
    let cmdline = machine.cmdline.replace("reset-at-once", "hang-at-once");
    let machine = Machine { cmdline, ..machine.clone() };
    let (mut processes, mut accounts) = (Vec::new(), Vec::new());
    let mut failure = None;
    for _ in 0..2 {
        let marks = Trace::begin(Watch::Marks)?;
        let mut process = contestant.start(&machine, bench.scratch())?;
        let mark = await_first(&marks, &mut process);
        processes.push(process);
        if let Err(error) = mark {
            failure = Some(error);
            break;
        }
        // Init stays after its mark; it tells nobody.
        thread::sleep(SETTLE);
        let each: Result<Vec<_>> = processes
            .iter()
            .map(|process| usage::resident(process.id(), u64::from(machine.memory_mib) << 10))
            .collect();
        accounts.push(each);
    }
    for process in processes {
        process.kill()?;
    }
    match failure {
        Some(error) => Err(error),
        None => add_memory(bench, row, &contestant.to_string(), accounts),
    }
}
