//! The test programs that cargo builds, and the tests in them that need a certain host.

use anyhow::{Context, Result};
use std::process::Command;

use crate::cargo::{self, Built};

/// What the tests of a program need when they are marked `#[ignore]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Any `/dev/kvm`: tier 1, and again in the lab.
    Kvm,
    /// A `/dev/kvm` that runs a stock Linux: tier 2.
    StockLinux,
}

/// A test program with at least one ignored test.
pub(crate) struct Harness {
    pub(crate) built: Built,
    /// How many of its tests are ignored unless asked for.
    pub(crate) tests: usize,
}

impl Harness {
    /// Told by the target's name alone.
    pub(crate) fn need(&self) -> Need {
        if self.built.name.starts_with("linux_") { Need::StockLinux } else { Need::Kvm }
    }

    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.built.package, self.built.name)
    }
}

/// All programs of one build: the tests, and the binaries that integration tests start.
pub(crate) struct Programs {
    pub(crate) harnesses: Vec<Harness>,
    pub(crate) binaries: Vec<Built>,
}

impl Programs {
    /// Builds every test of the workspace, for this host or for another target.
    pub(crate) fn build(target: Option<&str>) -> Result<Self> {
        let mut build = cargo::cargo("test");
        build.args(["--no-run", "--workspace", "--all-features", "--lib", "--bins", "--tests"]);
        if let Some(target) = target {
            build.args(["--target", target]);
        }
        let title = format!("building tests for {}", target.unwrap_or("this host"));
        let (tests, binaries): (Vec<_>, Vec<_>) =
            cargo::build(&title, &mut build)?.into_iter().partition(|built| built.test);
        let mut harnesses = Vec::new();
        for built in tests {
            let tests = count_ignored(&built)?;
            if tests > 0 {
                harnesses.push(Harness { built, tests });
            }
        }
        Ok(Self { harnesses, binaries })
    }
}

fn count_ignored(built: &Built) -> Result<usize> {
    let mut list = Command::new(&built.executable);
    let list = list.args(["--list", "--ignored", "--format", "terse"]).output();
    let list = list.with_context(|| format!("cannot run {}", built.executable.display()))?;
    Ok(String::from_utf8_lossy(&list.stdout)
        .lines()
        .filter(|line| line.ends_with(": test"))
        .count())
}
