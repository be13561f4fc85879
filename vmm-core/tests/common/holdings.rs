//! What this process holds of its host.

use std::fs;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Holdings {
    pub(crate) fds: usize,
    /// Of machines; the test harness has others.
    pub(crate) threads: usize,
}

impl Holdings {
    /// For each the larger one.
    #[must_use]
    pub(crate) fn max(self, other: Self) -> Self {
        Self { fds: self.fds.max(other.fds), threads: self.threads.max(other.threads) }
    }

    pub(crate) fn now() -> Self {
        let names = fs::read_dir("/proc/self/task").unwrap();
        let names =
            names.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
        let ours = |name: &String| name.starts_with("virtio-") || name.starts_with("vcpu");
        let fds = fs::read_dir("/proc/self/fd").unwrap().count();
        Self { fds, threads: names.filter(ours).count() }
    }
}

pub(crate) fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
