//! Guests that do what a shell script in the test says.

use std::fs;
use std::path::PathBuf;

use sparkler::virtio::block::Disk;
use sparkler::{Initrd, Kernel, MemorySize, Outcome, Vm, VmBuilder};
use tempfile::TempDir;

use crate::common::Captured;

fn variable(name: &str) -> PathBuf {
    std::env::var_os(name).unwrap_or_else(|| panic!("{name} must name a file")).into()
}

/// The disk with Debian, which must not be written to.
pub(crate) fn debian() -> PathBuf {
    variable("SPARKLER_ROOT_DISK")
}

/// The stock kernel and an initrd whose init knows what to do with disks.
pub(crate) fn linux(cmdline: &str) -> VmBuilder {
    Vm::builder()
        .memory(MemorySize::mib(256))
        .kernel(Kernel::file(variable("SPARKLER_KERNEL")).unwrap())
        .initrd(Initrd::file(variable("SPARKLER_INITRD")).unwrap())
        .cmdline(format!("console=ttyS0 quiet panic=-1 {cmdline}"))
}

/// Runs a machine to its end; its disks are closed then.
pub(crate) fn run(builder: VmBuilder) -> (Outcome, String) {
    let captured = Captured::default();
    let running = builder.console(captured.console()).build().unwrap().start().unwrap();
    let outcome = running.wait().unwrap();
    drop(running);
    (outcome, captured.text())
}

/// Runs `script` in Debian, which is for reading only, and asserts that it succeeds. `more` adds further
/// disks to the machine: `/dev/vdb` and on.
#[track_caller]
pub(crate) fn script(script: &str, more: impl FnOnce(VmBuilder) -> VmBuilder) -> String {
    let job = Job::new(script);
    let root = Disk::open_read_only(debian()).unwrap();
    let (outcome, text) = run(more(linux("root=/dev/vda ro").disk(root)).disk(job.disk()));
    assert_eq!(outcome, Outcome::Exited(0), "{text}");
    text
}

/// A script on its way to a guest.
pub(crate) struct Job(TempDir);

impl Job {
    pub(crate) fn new(script: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("job"), format!("#!/bin/sh -eu\n{script}")).unwrap();
        Self(folder)
    }

    /// A disk by whose serial number the guest knows it.
    pub(crate) fn disk(&self) -> Disk {
        Disk::open_read_only(self.0.path().join("job")).unwrap().serial("job").unwrap()
    }
}
