//! The project's own commands: `cargo xtask demo | test | lab | kernel | bench-disk | bench-net`.
//!
//! Each sets itself up on a fresh machine (Debian packages, Rust targets, the lab's kernel) and
//! keeps what it made under `target/lab`.

mod bench_linux;
mod cargo;
mod demo;
mod host;
mod kernel;
mod lab;
mod report;
mod setup;
mod step;
mod test;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Builds, shows and tests Sparkler on any x86-64 Debian machine.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot the built-in guest, then Debian's stock kernel with four vCPUs
    Demo,
    /// Run every tier of tests that this host can run, and say what was skipped and why
    Test(test::Options),
    /// Measure disks under a stock kernel next to other monitors, in the lab or on hardware KVM
    BenchDisk(bench_linux::DiskOptions),
    /// Measure networks under a stock kernel next to other monitors, in the lab or on hardware KVM
    BenchNet(bench_linux::NetOptions),
    /// Build a small kernel for microVMs from Debian's sources
    Kernel(kernel::Options),
    /// Run a command, or a shell, on a host with hardware-like KVM that QEMU emulates
    Lab(lab::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Demo => demo::run(),
        Task::Test(options) => test::run(&options),
        Task::BenchDisk(options) => bench_linux::disk(&options),
        Task::BenchNet(options) => bench_linux::net(&options),
        Task::Kernel(options) => kernel::run(&options),
        Task::Lab(options) => return lab::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}
