//! Where a machine's threads run, how they are named, and how much the host's scheduler favours them.

mod cpu_set;
mod threads;

use std::collections::BTreeMap;
use std::io;
use std::thread;

use thiserror::Error;

pub use self::cpu_set::{CpuSet, ParseCpuSetError};
pub(crate) use self::threads::{Role, Threads};
use crate::sys::scheduler;

/// Where the threads of a machine run on the host, and how. Without a word they run where the thread
/// runs that starts the machine; of a placement that says something and nothing of the devices, these run where
/// the thread runs that builds it.
///
/// | thread | name |
/// |---|---|
/// | vCPU N | `vcpu-N` |
/// | a virtio device, while its driver uses it | `virtio-TYPE`, the number of the device type: 1 network, 2 disk, 4 entropy |
/// | the console | `console-in`, `console-out` |
///
/// ```no_run
/// use sparkler::{Kernel, Placement, Vm};
///
/// let placement = Placement::new()
///     .vcpu(0, "2".parse()?)
///     .vcpu(1, "3".parse()?)
///     .devices("0-1".parse()?)
///     .name_prefix("web");
/// let vm = Vm::builder().vcpus(2).placement(placement).kernel(Kernel::file("vmlinux")?).build()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[must_use = "give it to VmBuilder::placement"]
pub struct Placement {
    vcpus: BTreeMap<u32, CpuSet>,
    other_vcpus: Option<CpuSet>,
    devices: Option<CpuSet>,
    nice: Option<i32>,
    name_prefix: Option<String>,
}

impl Placement {
    /// The longest prefix of thread names, in bytes: the kernel keeps 15 of a name.
    pub const MAX_NAME_PREFIX: usize = 7;

    /// Nothing is said: every thread runs where the one does that starts the machine.
    pub fn new() -> Self {
        Self::default()
    }

    /// vCPU `index` runs on `cpus` only.
    pub fn vcpu(mut self, index: u32, cpus: CpuSet) -> Self {
        self.vcpus.insert(index, cpus);
        self
    }

    /// The vCPUs that [`vcpu`](Self::vcpu) does not name run on `cpus` only.
    pub fn vcpus(mut self, cpus: CpuSet) -> Self {
        self.other_vcpus = Some(cpus);
        self
    }

    /// The threads of devices and console run on `cpus` only.
    pub fn devices(mut self, cpus: CpuSet) -> Self {
        self.devices = Some(cpus);
        self
    }

    /// The nice value of all threads, see `setpriority(2)`: -20 (favoured) to 19. To be favoured more than
    /// the thread that builds the machine takes `CAP_SYS_NICE` or `RLIMIT_NICE`.
    pub fn nice(mut self, nice: i32) -> Self {
        self.nice = Some(nice);
        self
    }

    /// Names the threads `PREFIX/vcpu-0` and so on, cut to 15 bytes: so the machines of a process can be
    /// told apart in `ps` and `top`, and, uncut, in log lines. 1 to
    /// [`MAX_NAME_PREFIX`](Self::MAX_NAME_PREFIX) bytes of printable ASCII.
    pub fn name_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.name_prefix = Some(prefix.into());
        self
    }

    /// What it means for each thread of a machine with `vcpus` vCPUs, if this host allows it.
    pub(crate) fn resolve(&self, vcpus: u8) -> Result<Threads, PlacementError> {
        if *self == Self::default() {
            return Ok(Threads::default());
        }
        self.check(vcpus)?;
        // Threads inherit from those that start them, and it is a vCPU that starts a device.
        let own = scheduler::affinity().map_err(PlacementError::Scheduler)?;
        let of_vcpu = |index| self.vcpus.get(&index).or(self.other_vcpus.as_ref()).cloned();
        let vcpus = (0..u32::from(vcpus)).map(of_vcpu).collect();
        let devices = self.devices.clone().unwrap_or(own);
        Ok(Threads::new(vcpus, devices, self.nice, self.name_prefix.clone()))
    }

    fn check(&self, vcpus: u8) -> Result<(), PlacementError> {
        if let Some(&vcpu) = self.vcpus.keys().find(|&&index| index >= u32::from(vcpus)) {
            return Err(PlacementError::NoSuchVcpu { vcpu, vcpus });
        }
        if let Some(nice) = self.nice.filter(|nice| !(-20..=19).contains(nice)) {
            return Err(PlacementError::Nice { nice });
        }
        if let Some(prefix) = &self.name_prefix {
            let legal = (1..=Self::MAX_NAME_PREFIX).contains(&prefix.len())
                && prefix.bytes().all(|byte| byte.is_ascii_graphic());
            if !legal {
                return Err(PlacementError::NamePrefix { prefix: prefix.clone() });
            }
        }
        // In a thread of its own, for the caller's must stay as it is.
        thread::scope(|scope| {
            let builder = thread::Builder::new().name("placement".to_owned());
            let tried = builder.spawn_scoped(scope, || self.check_with_host());
            let tried = tried.map_err(PlacementError::Scheduler)?;
            tried.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Tries it out on the calling thread.
    fn check_with_host(&self) -> Result<(), PlacementError> {
        let allowed = scheduler::allowed().map_err(PlacementError::Scheduler)?;
        let vcpus = self.vcpus.iter().map(|(index, cpus)| (format!("vCPU {index}"), cpus));
        let others = self.other_vcpus.iter().map(|cpus| ("the vCPUs".to_owned(), cpus));
        let devices = self.devices.iter().map(|cpus| ("the devices".to_owned(), cpus));
        for (threads, cpus) in vcpus.chain(others).chain(devices) {
            if cpus.is_empty() || !cpus.is_subset(&allowed) {
                let cpus = cpus.clone();
                return Err(PlacementError::Cpus { threads, cpus, allowed });
            }
        }
        match self.nice.map(scheduler::set_nice) {
            Some(Err(source)) => {
                Err(PlacementError::NicePermission { nice: self.nice.unwrap_or_default(), source })
            }
            _ => Ok(()),
        }
    }
}

/// Why threads cannot run as a [`Placement`] asks for.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum PlacementError {
    /// A vCPU is placed that the machine does not have.
    #[error("there is no vCPU {vcpu} to place: the machine has {vcpus}, counted from 0")]
    NoSuchVcpu {
        /// Its index.
        vcpu: u32,
        /// How many vCPUs there are.
        vcpus: u8,
    },
    /// This process may not use these CPUs: they are not there, offline, or outside its cpuset.
    #[error("{threads} cannot run on the CPUs {cpus}: this process may use {allowed}")]
    Cpus {
        /// Whose placement it is.
        threads: String,
        /// Where they should run.
        cpus: CpuSet,
        /// Where they may.
        allowed: CpuSet,
    },
    /// The nice value is out of range.
    #[error("a nice value of {nice} is not possible: it goes from -20 to 19")]
    Nice {
        /// The value.
        nice: i32,
    },
    /// The nice value asks for more than this process may have.
    #[error(
        "a nice value of {nice} is not permitted: it takes CAP_SYS_NICE, or a limit that allows it \
         (ulimit -e)"
    )]
    NicePermission {
        /// The value.
        nice: i32,
        /// The error.
        source: io::Error,
    },
    /// The prefix of thread names is empty, too long, or not printable.
    #[error(
        "{prefix:?} cannot begin the names of threads: it takes 1 to {} printable ASCII characters \
         without spaces",
        Placement::MAX_NAME_PREFIX
    )]
    NamePrefix {
        /// The prefix.
        prefix: String,
    },
    /// The host's scheduler does not tell what is allowed, or there is no thread to try it with.
    #[error("cannot find out where threads may run")]
    Scheduler(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let error = |placement: Placement| placement.resolve(2).unwrap_err();
        let new = Placement::new;
        assert!(matches!(error(new().vcpu(2, set("0"))), PlacementError::NoSuchVcpu { .. }));
        for cpus in ["8191", "0-8191"] {
            for placement in
                [new().vcpu(0, set(cpus)), new().vcpus(set(cpus)), new().devices(set(cpus))]
            {
                let error = error(placement);
                assert!(error.to_string().contains("this process may use"), "{error}");
            }
        }
        assert!(matches!(error(new().devices(CpuSet::default())), PlacementError::Cpus { .. }));
        for nice in [-21, 20, i32::MIN, i32::MAX] {
            assert!(matches!(error(new().nice(nice)), PlacementError::Nice { .. }));
        }
        for prefix in ["", "eightlng", "a b", "ä", "a\0"] {
            assert!(matches!(error(new().name_prefix(prefix)), PlacementError::NamePrefix { .. }));
        }
    }

    #[test]
    fn a_vcpus_own_set_comes_before_that_of_all() {
        let allowed = scheduler::affinity().unwrap();
        let first = allowed.iter().next().unwrap();
        let one = CpuSet::from_iter([first]);
        let threads = Placement::new().vcpus(allowed.clone()).vcpu(1, one.clone());
        let threads = threads.resolve(3).unwrap();
        assert_eq!(threads.vcpus, [Some(allowed.clone()), Some(one), Some(allowed.clone())]);
        assert_eq!(threads.devices, Some(allowed));
        assert_eq!(Placement::new().resolve(3).unwrap().devices, None);
    }
}
