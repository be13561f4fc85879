//! The project's own commands: `cargo xtask demo | test | bench | lab | kernel | audit`.
//!
//! Each sets itself up on a fresh machine (Debian packages, Rust targets, the lab's kernel) and
//! keeps what it made under `target/lab`.

mod audit;
mod bench;
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
    /// Measure boots next to the bare-KVM floor and to other monitors, and write a report
    Bench(bench::Options),
    /// Check licences, sources and advisories of the dependencies, and the public interface against a release
    Audit(audit::Options),
    /// Build a small kernel for microVMs from Debian's sources
    Kernel(kernel::Options),
    /// Run a command, or a shell, on a host with hardware-like KVM that QEMU emulates
    Lab(lab::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Task::Demo => demo::run(),
        Task::Test(options) => test::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Audit(options) => audit::run(&options),
        Task::Kernel(options) => kernel::run(&options),
        Task::Lab(options) => return lab::run(&options),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cli::command().debug_assert();
    }
}
