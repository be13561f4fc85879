//! What a disk gives a stock Linux, next to QEMU's microvm and, if `FIRECRACKER` names one, Firecracker:
//! `cargo xtask bench disk`, which runs it in the lab or on hardware KVM.
//!
//! Every monitor boots the same kernel and initrd with the same Debian root, one vCPU and 512 MiB, and
//! fio does the same jobs there with a disk whose image is on a tmpfs. The monitors take turns; each
//! figure is the median of their runs.
//!
//! | column | what |
//! |---|---|
//! | IOPS or MB/s | as fio in the guest has it |
//! | exits | KVM exits of the machine, of any kind, for one request |
//! | interrupts | of the disk, as the guest counts them, for one request |
//! | CPU | of the monitor's process without what its guest used, for one request, in µs |

mod guest;
mod monitors;

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use guest::{Figures, ROWS, Row};
use monitors::{Files, Monitor};
use sparkler_benches::turns::{Measured, Turns, median, range};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of the image.
const SIZE: usize = 256 << 20;

fn main() -> Result<()> {
    let turns = Turns::of_command_line(4)?;
    let rows = turns.rows(&ROWS, Row::name)?;
    let monitors = turns.monitors(&Monitor::all())?;
    let (runs, seconds) = (turns.runs, turns.seconds);
    let folder = tempfile::tempdir()?;
    let image = tempfile::Builder::new().prefix("disk-").tempfile_in("/dev/shm")?;
    fill(image.path())?;
    let job = folder.path().join("job");
    let files = Files::new(folder.path(), image.path(), &job)?;

    let patience = Duration::from_secs(60 + 2 * u64::from(seconds));
    let figures = turns.take(&monitors, &rows, Row::name, |monitor, rows| {
        fs::write(&job, guest::script(rows, seconds))?;
        guest::run(monitor.command(&files)?, rows, patience)
    });
    println!("stock Linux, 1 vCPU, 512 MiB, image on tmpfs, fio direct libaio {seconds} s;");
    println!("medians of {runs} runs (least to greatest), the monitors taking turns\n");
    println!(
        "{:22} {:24} {:>9} {:17} {:>6} {:>8} {:>10} {:>8}",
        "", "", "", "", "ratio", "exits", "interrupts", "CPU µs"
    );
    for row in &rows {
        print_row(row, &monitors, &figures);
    }
    Ok(())
}

/// Not with zeroes, which some storage treats specially, and so that the image is all there.
fn fill(image: &Path) -> Result<()> {
    let mut file = File::create(image)?;
    let block: Vec<u8> = (0..=u8::MAX).cycle().take(1 << 20).collect();
    for _ in 0..SIZE >> 20 {
        file.write_all(&block)?;
    }
    Ok(())
}

fn print_row(row: &Row, monitors: &[Monitor], figures: &Measured<Monitor, Figures>) {
    let mut first = None;
    for monitor in monitors {
        let Some(runs) = figures.get(&(row.name(), *monitor)) else { continue };
        let of = |value: fn(&Figures) -> f64| median(runs, value);
        let value: fn(&Figures) -> f64 = match row.unit() {
            "IOPS" => |run| run.per_second,
            _ => |run| run.megabytes_per_second,
        };
        let (result, (low, high)) = (of(value), range(runs, value));
        let range = format!("({low:.0} to {high:.0})");
        let name = if first.is_none() { row.name() } else { "" };
        let ratio = *first.get_or_insert(result) / result;
        println!(
            "{name:22} {monitor:24} {result:9.0} {range:17} {ratio:6.2} {:8.2} {:10.2} {:8.1}  {}",
            of(|run| run.exits),
            of(|run| run.interrupts),
            of(|run| run.cpu_microseconds),
            row.unit(),
        );
    }
}
