//! `cargo xtask audit`: what the dependencies are, by `deny.toml` and cargo-deny; and whether the libraries' public
//! interface still is that of the last release, as far as their versions promise it, by cargo-semver-checks.
//! Building these two takes minutes, and the database of advisories is on the network; so this is a
//! command of its own.

use anyhow::Result;
use clap::Args;
use std::process::{Command, ExitCode};
use std::time::Instant;

use crate::cargo::Workspace;
use crate::report::{Counts, Report};
use crate::{cargo, setup, step};

/// The tag of a release begins with this.
const RELEASES: &str = "v[0-9]*";

#[derive(Args)]
pub(crate) struct Options {
    /// Compare the public interface with this revision, instead of the last release (the newest tag vX.Y.Z)
    #[arg(long, value_name = "REVISION")]
    baseline: Option<String>,
}

/// Checks all, and fails if something is found.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
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
    compare_interface(&mut report, options.baseline.as_deref())?;
    Ok(if report.print() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn compare_interface(report: &mut Report, named: Option<&str>) -> Result<()> {
    let Some(baseline) = named.map(str::to_owned).or_else(last_release) else {
        let why = "there is no release to compare with; --baseline names another revision";
        report.skipped("", "public interface", 1, why);
        return Ok(());
    };
    let what = format!("public interface since {baseline}");
    match setup::cargo_semver_checks() {
        Ok(()) => {}
        Err(error) if named.is_some() => return Err(error),
        Err(error) => {
            report.skipped("", &what, 1, &format!("{error:#}"));
            return Ok(());
        }
    }
    let mut compare = cargo::cargo("semver-checks");
    compare.args(["--baseline-rev", &baseline]);
    for library in Workspace::load()?.libraries {
        compare.args(["--package", &library]);
    }
    audit(report, &what, &mut compare)
}

/// By its tag, which is not that of this very revision. None where git has none, or is none.
fn last_release() -> Option<String> {
    let mut describe = Command::new("git");
    describe.current_dir(cargo::root()).args([
        "describe",
        "--tags",
        "--abbrev=0",
        "--match",
        RELEASES,
        "HEAD^",
    ]);
    let output = describe.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
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
