//! `cargo xtask test`: every tier that this host can run.
//!
//! | tier | what | needs |
//! |---|---|---|
//! | T0 | tests that are not ignored, documentation tests, a build with the oldest compiler promised; the packages, and a crate outside that uses them | nothing |
//! | T1 | that crate's run; ignored tests, except those of programs named `linux_*`, `debian_*` and `network_*` | by name: see [`harness::Need`] |
//! | T2 | a boot of Debian's kernel, `linux_*`, `debian_*` and `network_*`, in the lab and on hardware KVM; `kvm_*` in the lab where there is no KVM, or if asked | Debian's QEMU |
//! | T3 | each fuzz target for a while | a nightly compiler |
//!
//! A test that needs something of its host says so in `#[ignore = "needs /dev/kvm"]` and stands in a file
//! whose name begins as [`harness::Need`] says: `tests/kvm_*.rs`, `tests/linux_*.rs` and so on. It finds
//! Debian's kernel and an initrd by the variables `SPARKLER_KERNEL` and `SPARKLER_INITRD`, and a disk with
//! a Debian root, which it must not write to, by `SPARKLER_ROOT_DISK`. `SPARKLER_VERIFY_SECONDS` is handed on
//! to the tests: how long they verify data on disks; and `SPARKLER_THOROUGH`: networks are tested at length.
//! So `cargo test` alone passes anywhere, and a test that could not run is never counted as passed: here
//! it is skipped, by count.
//!
//! In the lab, which is some ten times slower and sets `SPARKLER_EMULATED`, a test has its own program
//! and, at the path that `CARGO_BIN_EXE_…` names, the binaries of its package; not the source tree.

mod consumer;
mod harness;
mod tiers;

use anyhow::Result;
use clap::{Args, ValueEnum};
use std::process::ExitCode;

use crate::report::Report;

#[derive(Args)]
pub(crate) struct Options {
    /// Run this tier only (may be given more than once)
    #[arg(long = "tier", value_name = "TIER", ignore_case = true)]
    tiers: Vec<Tier>,
    /// Run the tests for any KVM in the lab as well, though this host has a KVM for them
    #[arg(long)]
    kvm_in_lab: bool,
    /// How long each fuzz target runs
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    fuzz_seconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// Needs nothing
    T0,
    /// This host's KVM
    T1,
    /// The lab, or hardware KVM
    T2,
    /// Fuzzing
    T3,
}

/// Runs the tiers and fails if a test did.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut report = Report::default();
    let chosen = |tier| options.tiers.is_empty() || options.tiers.contains(&tier);
    if chosen(Tier::T0) {
        tiers::t0(&mut report)?;
    }
    if chosen(Tier::T0) || chosen(Tier::T1) {
        consumer::check(&mut report, chosen(Tier::T1))?;
    }
    if chosen(Tier::T1) {
        tiers::t1(&mut report)?;
    }
    if chosen(Tier::T2) {
        tiers::t2(&mut report, options.kvm_in_lab)?;
    }
    if chosen(Tier::T3) {
        tiers::t3(&mut report, options.fuzz_seconds)?;
    }
    Ok(if report.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
