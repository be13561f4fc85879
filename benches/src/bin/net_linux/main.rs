//! What a network on a tap gives a stock Linux, next to QEMU's microvm without and with vhost and, if
//! `FIRECRACKER` names one, Firecracker: `cargo xtask bench net`, which runs it in the lab or on hardware KVM.
//!
//! Every monitor boots the same kernel and initrd with the same Debian root, one vCPU and 512 MiB, on a tap
//! of its own in a network namespace of this program's. The other end is this host. The monitors take
//! turns; each figure is the median of their runs.
//!
//! | column | what |
//! |---|---|
//! | the figure | as iperf3's receiver or ping has it |
//! | ratio | of ours to theirs; of a time, theirs to ours |
//! | exits | KVM exits of the machine, of any kind, for a packet, an echo, or a megabyte |
//! | interrupts | of the card, as the guest counts them, for the same |
//! | CPU | all that this host worked meanwhile, its guest and iperf3 included, in seconds for a gigabyte, or in µs for a packet or an echo. So threads of the kernel count as well |

mod guest;
mod monitors;

use std::error::Error;
use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use guest::{ROWS, Row};
use monitors::Monitor;
use sparkler_benches::linux_machine::LinuxMachine;
use sparkler_benches::turns::{Measured, Turns};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const TAP: &str = "tap0";
const HOST: &str = "10.0.0.1";
const GUEST: &str = "10.0.0.2";

fn main() -> Result<()> {
    let turns = Turns::of_command_line(3)?;
    let rows = turns.rows(&ROWS, Row::name)?;
    if let Some(measured) = turns.others()? {
        print_table(&turns, &rows, &measured);
        return Ok(());
    }
    let monitors = turns.monitors(&Monitor::all())?;
    enter_namespace()?;
    let folder = tempfile::tempdir()?;
    let job = folder.path().join("job");
    let cmdline = format!(" ip={GUEST}::{HOST}:255.255.255.0::eth0:off");
    let machine = LinuxMachine::new(folder.path(), &job, &cmdline)?;
    let patience = Duration::from_secs(60 + 4 * u64::from(turns.seconds));
    let measured = turns.take(&monitors, &rows, Row::name, |monitor, rows| {
        fs::write(&job, guest::script(rows, turns.seconds))?;
        // A server whose client was killed waits for it for ever: each machine has a new one.
        let _server = Server::start()?;
        guest::run(monitor.command(&machine)?, rows, patience, turns.seconds)
    });
    if !turns.write(&measured)? {
        print_table(&turns, &rows, &measured);
    }
    Ok(())
}

fn print_table(turns: &Turns, rows: &[&Row], measured: &Measured) {
    let Turns { runs, seconds, .. } = turns;
    println!("stock Linux, 1 vCPU, 512 MiB, tap, {seconds} s for each figure;");
    println!("medians of {runs} runs (least to greatest), the monitors taking turns\n");
    println!(
        "{:14} {:20} {:>8} {:17} {:18} {:>6} {:>8} {:>10} {:>8}",
        "", "", "", "", "", "ratio", "exits", "interrupts", "CPU"
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
        // More is better, but for a time.
        let ours = *first.get_or_insert(result);
        let ratio = if row.is_time() { result / ours } else { ours / result };
        println!(
            "{name:14} {monitor:20} {result:8.0} {range:17} {:18} {ratio:6.2} {:8.2} {:10.2} {:8.2} {}",
            row.unit(),
            median("exits"),
            median("interrupts"),
            median("cpu"),
            row.cpu_unit(),
        );
    }
}

/// Networks of our own, in which everybody's tap can have the same name and addresses.
fn enter_namespace() -> Result<()> {
    // SAFETY: there is no other thread yet, and only the network namespace changes.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    ip("link set lo up")
}

/// Gives the tap, which the monitor has just made, its address.
fn set_up_tap() -> Result<()> {
    ip(&format!("addr add {HOST}/24 dev {TAP}"))?;
    ip(&format!("link set {TAP} up"))
}

fn ip(words: &str) -> Result<()> {
    let status = Command::new("ip").args(words.split_whitespace()).status()?;
    if status.success() { Ok(()) } else { Err(format!("ip {words}: {status}").into()) }
}

/// iperf3's, which ends with this.
struct Server(Child);

impl Server {
    fn start() -> Result<Self> {
        let mut command = Command::new("iperf3");
        let child = command.arg("--server").stdout(Stdio::null()).spawn();
        Ok(Self(child.map_err(|error| format!("iperf3: {error}"))?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
