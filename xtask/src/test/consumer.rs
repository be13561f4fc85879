//! The packages as someone outside gets them: a crate of its own with only `sparkler` in its
//! dependencies, outside the workspace, without a lock file, built with the oldest and with the current
//! compiler; and the binary's package, as `cargo install` builds it.

use anyhow::{Context, Result};
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use super::tiers::run_one;
use crate::cargo::{self, Workspace};
use crate::host::Kvm;
use crate::report::{Counts, Report};
use crate::{setup, step};

const LIBRARY: &str = "sparkler";
const BINARY: &str = "sparkler-cli";

/// Packs, builds and, if `boot` says so, runs.
pub(super) fn check(report: &mut Report, boot: bool) -> Result<()> {
    let workspace = Workspace::load()?;
    let folder = workspace.target.join("consumer");
    let begun = Instant::now();
    let packages = Packages::make(&workspace, &folder);
    report.ran("T0", "packages", Counts::one(packages.is_ok()), begun.elapsed());
    let packages = match packages {
        Ok(packages) => packages,
        Err(error) => {
            eprintln!("error: {error:#}");
            return Ok(());
        }
    };

    for toolchain in [Some(workspace.msrv.as_str()), None] {
        let compiler = toolchain.map_or("current Rust".to_owned(), |it| format!("Rust {it}"));
        let what = format!("a crate outside, {compiler}");
        if let Some(Err(error)) = toolchain.map(setup::rust_toolchain) {
            report.skipped("T0", &what, 1, &format!("{error:#}"));
            continue;
        }
        let project = packages.project()?;
        let target = folder.join(toolchain.unwrap_or("current"));
        let mut build = packages.cargo("build", toolchain, &target);
        if !run_one(report, "T0", &what, build.current_dir(project.path()))? || !boot {
            continue;
        }
        let what = format!("{what}, boots the built-in guest");
        match Kvm::probe() {
            Kvm::None => report.skipped("T1", &what, 1, &Kvm::None.to_string()),
            _ => {
                let mut run = Command::new("timeout");
                run.arg("120").arg(target.join("debug/consumer")).current_dir(project.path());
                run_one(report, "T1", &what, &mut run)?;
            }
        }
    }

    let mut install = packages.cargo("check", None, &folder.join("current"));
    install.current_dir(packages.unpacked(BINARY));
    run_one(report, "T0", &format!("{BINARY} from its package"), &mut install)?;
    Ok(())
}

/// What would be on the registry, unpacked.
struct Packages {
    folder: PathBuf,
    names: Vec<String>,
    version: String,
    /// There is no registry to be reached: crates are those that cargo has seen before.
    offline: bool,
}

impl Packages {
    fn make(workspace: &Workspace, folder: &Path) -> Result<Self> {
        // Not built here, as everything in them is built below.
        let mut package = cargo::cargo("package");
        package.args(["--no-verify", "--allow-dirty"]).arg("--target-dir").arg(&workspace.target);
        package.args(workspace.published.iter().flat_map(|name| ["--package", name]));
        let offline = match step::run_any("packing the crates", &mut package)? {
            output if output.status.success() => false,
            _ => {
                step::run("packing the crates, without a network", package.arg("--offline"))?;
                true
            }
        };
        let (names, version) = (workspace.published.clone(), workspace.version.clone());
        let packages = Self { folder: folder.join("packages"), names, version, offline };
        packages.unpack(&workspace.target.join("package"))?;
        Ok(packages)
    }

    fn unpack(&self, archives: &Path) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)?;
        }
        fs::create_dir_all(&self.folder)?;
        for name in &self.names {
            let archive = archives.join(format!("{name}-{}.crate", self.version));
            let mut tar = Command::new("tar");
            // The times in a package are always the same, and by a file's time cargo sees a change.
            tar.arg("-C").arg(&self.folder).args(["--touch", "-xzf"]).arg(archive);
            step::run("unpacking a crate", &mut tar)?;
            // Whoever adds or installs the crate does not get it either.
            let lock = self.unpacked(name).join("Cargo.lock");
            if lock.exists() {
                fs::remove_file(lock)?;
            }
        }
        Ok(())
    }

    fn unpacked(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}-{}", self.version))
    }

    /// A fresh crate that uses the library, in a place that has nothing to do with the workspace.
    fn project(&self) -> Result<tempfile::TempDir> {
        let project = tempfile::Builder::new().prefix("sparkler-consumer-").tempdir()?;
        let manifest = format!(
            "[package]\nname = \"consumer\"\nedition = \"2024\"\n\n[dependencies]\n\
             {LIBRARY} = {{ version = \"={}\", features = [\"guest\"] }}\n",
            self.version
        );
        fs::write(project.path().join("Cargo.toml"), manifest)?;
        fs::create_dir(project.path().join("src"))?;
        let source = cargo::root().join("xtask/consumer/main.rs");
        fs::copy(&source, project.path().join("src/main.rs"))
            .with_context(|| format!("cannot copy {}", source.display()))?;
        Ok(project)
    }

    /// A cargo to which our packages are the registry's.
    fn cargo(&self, subcommand: &str, toolchain: Option<&str>, target: &Path) -> Command {
        let mut command = match toolchain {
            Some(toolchain) => cargo::cargo_of(toolchain, subcommand),
            None => cargo::cargo(subcommand),
        };
        command.arg("--target-dir").arg(target).env("CARGO_PROFILE_DEV_DEBUG", "0");
        for name in &self.names {
            let mut patch = OsString::from(format!("patch.crates-io.{name}.path='"));
            patch.push(self.unpacked(name));
            patch.push("'");
            command.arg("--config").arg(patch);
        }
        if self.offline {
            command.arg("--offline");
        }
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;
    use std::collections::BTreeSet;

    fn published() -> Vec<Value> {
        let mut metadata = cargo::cargo("metadata");
        let metadata = metadata.args(["--no-deps", "--format-version=1"]).output().unwrap();
        let metadata: Value = serde_json::from_slice(&metadata.stdout).unwrap();
        let packages = metadata["packages"].as_array().unwrap().iter();
        packages.filter(|package| package["publish"].is_null()).cloned().collect()
    }

    fn folder(package: &Value) -> &Path {
        Path::new(package["manifest_path"].as_str().unwrap()).parent().unwrap()
    }

    #[test]
    fn a_readme_names_every_feature() {
        for package in published() {
            let readme = fs::read_to_string(folder(&package).join("README.md")).unwrap();
            for feature in package["features"].as_object().unwrap().keys() {
                let named = feature == "default" || readme.contains(&format!("`{feature}`"));
                assert!(named, "the README of {} does not name {feature}", package["name"]);
            }
        }
    }

    #[test]
    fn the_library_brings_fewer_than_forty_crates() {
        let mut tree = cargo::cargo("tree");
        let tree = tree.args(["-p", LIBRARY, "-e", "normal", "--prefix", "none", "--no-dedupe"]);
        let tree = String::from_utf8(tree.output().unwrap().stdout).unwrap();
        let crates: BTreeSet<_> = tree.lines().collect();
        assert!((10..40).contains(&crates.len()), "{crates:?}");
    }

    #[test]
    fn a_package_says_what_the_registry_shows() {
        let published = published();
        assert!(published.len() >= 5);
        for package in published {
            for key in ["description", "documentation", "license", "readme", "rust_version"] {
                assert!(package[key].is_string(), "{} has no {key}", package["name"]);
            }
            for key in ["keywords", "categories"] {
                let words = package[key].as_array().unwrap().len();
                assert!((1..=5).contains(&words), "{}: {words} {key}", package["name"]);
            }
            for licence in ["LICENSE-APACHE", "LICENSE-MIT"] {
                let there = folder(&package).join(licence).is_file();
                assert!(there, "{} has no {licence}", package["name"]);
            }
        }
    }
}
