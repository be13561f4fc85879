//! What the host's kernel counts of a monitor.

use std::collections::BTreeSet;
use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where KVM counts, in debugfs.
const KVM: &str = "/sys/kernel/debug/kvm";

/// A clock tick of `/proc/PID/stat` in microseconds: `USER_HZ` is 100 on every x86 Linux.
const TICK: f64 = 10_000.0;

/// The counters of a process and its machine at one moment.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Exits of all vCPUs.
    pub exits: u64,
    /// User and system time of all threads, without what guest code used.
    pub cpu_microseconds: f64,
}

/// A monitor's process and the folder that KVM has for its machine.
#[derive(Debug)]
pub struct Source {
    process: u32,
    /// The machines that were there before.
    others: BTreeSet<OsString>,
}

impl Source {
    /// To be called before the monitor starts.
    ///
    /// # Errors
    /// If there is no debugfs.
    pub fn before_start() -> Result<Self> {
        Ok(Self { process: 0, others: machines()? })
    }

    /// The process of the monitor.
    #[must_use]
    pub fn started(self, process: u32) -> Self {
        Self { process, ..self }
    }

    /// What is counted now.
    ///
    /// # Errors
    /// If the monitor has no machine, or there is another new one.
    pub fn read(&self) -> Result<Counters> {
        // The folder's name begins with the thread that made the machine, not with the process.
        let machines = machines()?;
        let mut new = machines.difference(&self.others);
        let (Some(machine), None) = (new.next(), new.next()) else {
            return Err("there must be one new machine on this host".into());
        };
        let exits = fs::read_to_string(Path::new(KVM).join(machine).join("exits"))?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process))?;
        // The name, in parentheses, may hold anything; the third field follows.
        let fields = stat.rsplit_once(')').ok_or("no name in stat")?.1;
        let fields: Vec<&str> = fields.split_whitespace().collect();
        let ticks = |number: usize| -> Result<f64> {
            Ok(fields.get(number - 3).ok_or("stat is too short")?.parse()?)
        };
        // utime, which includes guest_time; stime; guest_time.
        let cpu_microseconds = (ticks(14)? + ticks(15)? - ticks(43)?) * TICK;
        Ok(Counters { exits: exits.trim().parse()?, cpu_microseconds })
    }
}

/// All machines of this host.
fn machines() -> Result<BTreeSet<OsString>> {
    let entries = fs::read_dir(KVM).map_err(|error| format!("{KVM}: {error}; mount debugfs"))?;
    let folders = entries.filter_map(std::result::Result::ok);
    let folders = folders.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|entry| entry.file_name()).collect())
}
