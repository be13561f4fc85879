//! The test programs that cargo builds, and the tests in them that need a certain host.

use anyhow::{Context, Result};
use std::process::Command;

use crate::cargo::{self, Built};
#[cfg(doc)]
use crate::setup;

/// What the ignored tests of a program need of a host, told by the program's name alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// `kvm_*`, `terminal_*`: any `/dev/kvm`.
    Kvm,
    /// `linux_*`: a `/dev/kvm` that runs a stock Linux.
    StockLinux,
    /// `debian_*`: that, and a disk with a Debian root.
    DebianRoot,
    /// `network_*`: that, an administrator's rights, and programs of [`setup::NETWORK_PROGRAMS`].
    Network,
    /// `host_*`: an administrator's rights.
    Root,
    /// `hugepages_*`: the same, and any `/dev/kvm`.
    RootAndKvm,
    /// Any other name: Debian's kernel, as a file.
    Kernel,
}

impl Need {
    fn of(program: &str) -> Self {
        match program.split('_').next() {
            Some("kvm" | "terminal") => Self::Kvm,
            Some("linux") => Self::StockLinux,
            Some("debian") => Self::DebianRoot,
            Some("network") => Self::Network,
            Some("host") => Self::Root,
            Some("hugepages") => Self::RootAndKvm,
            _ => Self::Kernel,
        }
    }
}

/// A test program with at least one ignored test.
pub(crate) struct Harness {
    pub(crate) built: Built,
    /// How many of its tests are ignored unless asked for.
    pub(crate) tests: usize,
}

impl Harness {
    pub(crate) fn need(&self) -> Need {
        Need::of(&self.built.name)
    }

    /// Whether this program may start that one: a binary of its package, or if it tests them, an example.
    pub(crate) fn starts(&self, program: &Built) -> bool {
        program.package == self.built.package
            && (!program.example || self.built.name.ends_with("_examples"))
    }

    pub(crate) fn title(&self) -> String {
        format!("{} {}", self.built.package, self.built.name)
    }
}

/// All programs of one build: the tests, and the binaries that integration tests start.
pub(crate) struct Programs {
    pub(crate) harnesses: Vec<Harness>,
    /// And examples.
    pub(crate) binaries: Vec<Built>,
}

impl Programs {
    /// Builds every test of the workspace, for this host or for another target.
    pub(crate) fn build(target: Option<&str>) -> Result<Self> {
        let mut build = cargo::cargo("test");
        build.args(["--no-run", "--workspace", "--all-features", "--lib", "--bins", "--tests"]);
        if let Some(target) = target {
            build.args(["--target", target]);
            // They have no such test, and libraries in C that only a C compiler for the target could build.
            build.args(["--exclude", "sparkler-benches", "--exclude", "xtask"]);
        }
        let title = format!("building tests for {}", target.unwrap_or("this host"));
        let (tests, mut binaries): (Vec<_>, Vec<_>) =
            cargo::build(&title, &mut build)?.into_iter().partition(|built| built.test);
        // `cargo test --examples` would make tests of them too, and no programs.
        let mut build = cargo::cargo("build");
        build.args(["--workspace", "--all-features", "--examples"]);
        if let Some(target) = target {
            build.args(["--target", target]);
        }
        binaries.extend(cargo::build("building examples", &mut build)?);
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
