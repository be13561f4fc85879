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

use guest::{ROWS, Row};
use monitors::Monitor;
use sparkler_benches::linux_machine::LinuxMachine;
use sparkler_benches::turns::{Measured, Turns};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Bytes of the image.
const SIZE: usize = 256 << 20;

fn main() -> Result<()> {
    let turns = Turns::of_command_line(4)?;
    let rows = turns.rows(&ROWS, Row::name)?;
    if let Some(measured) = turns.others()? {
        print_table(&turns, &rows, &measured);
        return Ok(());
    }
    let monitors = turns.monitors(&Monitor::all())?;
    let folder = tempfile::tempdir()?;
    let image = tempfile::Builder::new().prefix("disk-").tempfile_in("/dev/shm")?;
    fill(image.path())?;
    let job = folder.path().join("job");
    let machine = LinuxMachine::new(folder.path(), &job, "")?;
    let patience = Duration::from_secs(60 + 2 * u64::from(turns.seconds));
    let measured = turns.take(&monitors, &rows, Row::name, |monitor, rows| {
        fs::write(&job, guest::script(rows, turns.seconds))?;
        guest::run(monitor.command(&machine, image.path())?, rows, patience)
    });
    if !turns.write(&measured)? {
        print_table(&turns, &rows, &measured);
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

fn print_table(turns: &Turns, rows: &[&Row], measured: &Measured) {
    let Turns { runs, seconds, .. } = turns;
    println!("stock Linux, 1 vCPU, 512 MiB, image on tmpfs, fio direct libaio {seconds} s;");
    println!("medians of {runs} runs (least to greatest), the monitors taking turns\n");
    println!(
        "{:22} {:24} {:>9} {:17} {:>6} {:>8} {:>10} {:>8}",
        "", "", "", "", "ratio", "exits", "interrupts", "CPU µs"
    );
    rows.iter().for_each(|row| print_row(row, measured));
}

fn print_row(row: &Row, measured: &Measured) {
    let mut first = None;
    for monitor in Monitor::ALL {
        let of = |metric| measured.of(row.name(), &monitor.to_string(), metric);
        let median = |metric| of(metric).map_or(f64::NAN, |values| values.median());
        let Some(results) = of("result") else { continue };
        let (result, (low, high)) = (results.median(), results.range());
        let range = format!("({low:.0} to {high:.0})");
        let name = if first.is_none() { row.name() } else { "" };
        let ratio = *first.get_or_insert(result) / result;
        println!(
            "{name:22} {monitor:24} {result:9.0} {range:17} {ratio:6.2} {:8.2} {:10.2} {:8.1}  {}",
            median("exits"),
            median("interrupts"),
            median("cpu"),
            row.unit(),
        );
    }
}
