//! Compiles the guest (`src/kernel`) with the compiler and for the target that cargo uses now: `core`
//! is in the sysroot of every target, so no other toolchain or target is needed.

use std::env;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("cargo::error={error}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=src/kernel");
    println!("cargo::rerun-if-changed=src/exit_code.rs");
    println!("cargo::rerun-if-changed=build.rs");

    let target = env::var("TARGET")?;
    let supported = ["x86_64-unknown-linux-gnu", "x86_64-unknown-linux-musl"];
    if !supported.contains(&target.as_str()) {
        return Err(format!(
            "sparkler-guest is an x86-64 program and is built for {} only, not for {target}",
            supported.join(" and ")
        )
        .into());
    }

    let manifest_dir = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let output = PathBuf::from(env::var("OUT_DIR")?).join("guest.elf");
    let result = rustc(&target, &manifest_dir, &output)?.output()?;
    for line in String::from_utf8_lossy(&result.stderr).lines() {
        println!("cargo::warning={line}");
    }
    if !result.status.success() {
        return Err(format!("rustc could not build the guest ({})", result.status).into());
    }
    Ok(())
}

/// The compiler's command line. Flags and wrappers of the build around us do not matter to the guest,
/// so `rustc` is called as it is; what cargo's job server says is for cargo's children alone.
fn rustc(target: &str, manifest_dir: &Path, output: &Path) -> Result<Command, env::VarError> {
    let kernel = manifest_dir.join("src/kernel");
    let mut rustc = Command::new(env::var("RUSTC")?);
    rustc
        .env_remove("CARGO_MAKEFLAGS")
        .env_remove("MAKEFLAGS")
        .env_remove("MFLAGS")
        .args(["--crate-name", "sparkler_guest_kernel", "--crate-type", "bin"])
        .args(["--edition", "2024", "--target", target, "--cap-lints", "warn"])
        .args(["-C", "opt-level=s", "-C", "lto=fat", "-C", "codegen-units=1"])
        .args(["-C", "panic=abort", "-C", "strip=symbols", "-C", "force-unwind-tables=no"])
        .args(["-C", "debug-assertions=off", "-C", "overflow-checks=off"])
        // At a fixed address, without any C library or start files.
        .args(["-C", "relocation-model=static", "-C", "target-feature=+crt-static"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-static"])
        .args(["-C", "link-arg=-z", "-C", "link-arg=max-page-size=4096"])
        .args(["-C", "link-arg=-T", "-C"])
        .arg(format!("link-arg={}", kernel.join("link.ld").display()))
        // The same bytes wherever the sources lie.
        .arg(format!("--remap-path-prefix={}=", manifest_dir.display()))
        .arg("-o")
        .arg(output)
        .arg(kernel.join("main.rs"));
    if target.ends_with("-musl") {
        rustc.args(["-C", "link-self-contained=no"]);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        rustc.args(["-C", &format!("linker={linker}")]);
    }
    Ok(rustc)
}
