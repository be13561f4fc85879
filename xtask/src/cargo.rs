//! This workspace as cargo knows it: where it lies, what it builds.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step;

/// The target of everything that runs inside the lab: one file each, linked statically.
pub(crate) const LAB_TARGET: &str = "x86_64-unknown-linux-musl";

/// The root of the source tree.
pub(crate) fn root() -> PathBuf {
    let xtask = env::var_os("CARGO_MANIFEST_DIR").unwrap_or(env!("CARGO_MANIFEST_DIR").into());
    Path::new(&xtask).parent().unwrap_or(Path::new(".")).to_owned()
}

/// A `cargo` command at the root of the tree.
pub(crate) fn cargo(subcommand: &str) -> Command {
    let mut command = Command::new("cargo");
    command.current_dir(root()).arg(subcommand);
    command
}

/// A `cargo` command of another toolchain.
pub(crate) fn cargo_of(toolchain: &str, subcommand: &str) -> Command {
    let mut command = Command::new("rustup");
    command.current_dir(root()).args(["run", toolchain, "cargo", subcommand]);
    command
}

/// The workspace's own packages and its target directory.
pub(crate) struct Workspace {
    pub(crate) target: PathBuf,
    /// The packages that get published, by name.
    pub(crate) published: Vec<String>,
    /// Those of them that others build on.
    pub(crate) libraries: Vec<String>,
    /// Their version: they are published together.
    pub(crate) version: String,
    /// The oldest compiler that they promise to build with.
    pub(crate) msrv: String,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        let metadata = cargo("metadata")
            .args(["--no-deps", "--format-version=1"])
            .output()
            .context("cannot run `cargo metadata`")?;
        if !metadata.status.success() {
            bail!("`cargo metadata` failed: {}", String::from_utf8_lossy(&metadata.stderr).trim());
        }
        Self::parse(&serde_json::from_slice(&metadata.stdout)?)
            .context("`cargo metadata` speaks of no packages as we know them")
    }

    fn parse(metadata: &Value) -> Option<Self> {
        let packages = metadata.get("packages")?.as_array()?;
        // `publish = false` reads as an empty list of registries, and no word as null.
        let published: Vec<_> =
            packages.iter().filter(|p| p.get("publish").is_some_and(Value::is_null)).collect();
        let text = |value: &Value, key| value.get(key)?.as_str().map(str::to_owned);
        Some(Self {
            target: text(metadata, "target_directory")?.into(),
            msrv: published.iter().find_map(|package| text(package, "rust_version"))?,
            version: published.iter().find_map(|package| text(package, "version"))?,
            libraries: {
                let libraries = published.iter().filter(|package| is_library(package));
                libraries.filter_map(|package| text(package, "name")).collect()
            },
            published: published.iter().filter_map(|package| text(package, "name")).collect(),
        })
    }

    /// Where the lab keeps what it made.
    pub(crate) fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }
}

fn is_library(package: &Value) -> bool {
    let mut targets = package.get("targets").and_then(Value::as_array).into_iter().flatten();
    targets.any(|target| target.get("kind") == Some(&serde_json::json!(["lib"])))
}

/// A file that cargo built.
#[derive(Clone, Debug)]
pub(crate) struct Built {
    /// The target's name: of a binary, or of an integration test.
    pub(crate) name: String,
    /// The name of its package.
    pub(crate) package: String,
    /// The package's folder, which cargo makes the working directory of its tests.
    pub(crate) folder: PathBuf,
    /// Whether it is a test harness.
    pub(crate) test: bool,
    /// Whether it is an example.
    pub(crate) example: bool,
    pub(crate) executable: PathBuf,
}

/// Runs a `cargo build` or `cargo test --no-run`, and tells which executables it made.
pub(crate) fn build(title: &str, command: &mut Command) -> Result<Vec<Built>> {
    // Warnings and errors go to stderr as text; stdout is one JSON object a line.
    command.arg("--message-format=json-render-diagnostics");
    let output = step::run_any(title, command)?;
    if !output.status.success() {
        let human = output.transcript.lines().filter(|line| !line.starts_with('{'));
        human.for_each(|line| eprintln!("{line}"));
        bail!("`{}` failed ({})", step::describe(command), output.status);
    }
    Ok(output.stdout.lines().filter_map(parse_artifact).collect())
}

fn parse_artifact(line: &str) -> Option<Built> {
    let message: Value = serde_json::from_str(line).ok()?;
    let executable = message.get("executable")?.as_str()?;
    let folder = Path::new(message.get("manifest_path")?.as_str()?).parent()?;
    // "path+file:///tree/vmm-core#sparkler@0.1.0", or "…/xtask#0.1.0" where folder and name agree.
    let (_, id) = message.get("package_id")?.as_str()?.rsplit_once('#')?;
    let package = match id.split_once('@') {
        Some((name, _)) => name.to_owned(),
        None => folder.file_name()?.to_str()?.to_owned(),
    };
    Some(Built {
        name: message.get("target")?.get("name")?.as_str()?.to_owned(),
        package,
        folder: folder.to_owned(),
        example: message
            .get("target")?
            .get("kind")?
            .as_array()?
            .iter()
            .any(|kind| kind == "example"),
        test: message.get("profile")?.get("test")?.as_bool()?,
        executable: executable.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_executable_is_told_from_other_messages() {
        let line = r#"{"reason":"compiler-artifact","package_id":"path+file:///t/vmm-core#sparkler@0.1.0",
            "manifest_path":"/t/vmm-core/Cargo.toml","target":{"kind":["test"],"name":"kvm_exit"},
            "profile":{"test":true},"executable":"/t/target/debug/deps/kvm_exit-0"}"#;
        let built = parse_artifact(line).unwrap();
        assert_eq!((built.name.as_str(), built.package.as_str()), ("kvm_exit", "sparkler"));
        assert!(built.test);
        assert_eq!(built.folder, Path::new("/t/vmm-core"));
        assert!(parse_artifact(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(parse_artifact("   Compiling nothing").is_none());
    }
}
