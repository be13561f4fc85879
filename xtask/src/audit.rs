//! `cargo xtask audit`: what the dependencies are, by `deny.toml` and cargo-deny. Building cargo-deny takes
//! minutes, and its database of advisories is on the network; so this is a command of its own.

use anyhow::Result;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::report::{Counts, Report};
use crate::{cargo, setup, step};

/// Checks all, and fails if something is found.
pub(crate) fn run() -> Result<ExitCode> {
    setup::cargo_deny()?;
    let mut report = Report::default();
    for check in ["licenses", "bans", "sources"] {
        audit(&mut report, check, deny("check").arg(check))?;
    }
    if step::run_any("fetching the advisories", deny("fetch").arg("db"))?.status.success() {
        audit(&mut report, "advisories", deny("check").args(["--disable-fetch", "advisories"]))?;
    } else {
        report.skipped("", "advisories", 1, "their database cannot be fetched");
    }
    Ok(if report.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn deny(subcommand: &str) -> Command {
    let mut command = cargo::cargo("deny");
    command.arg(subcommand);
    command
}

fn audit(report: &mut Report, what: &str, command: &mut Command) -> Result<()> {
    let begun = Instant::now();
    let output = step::run_any(&format!("checking {what}"), command)?;
    let well = output.status.success();
    if !well {
        eprint!("{}", output.transcript);
    }
    report.ran("", what, Counts::one(well), begun.elapsed());
    Ok(())
}
