//! `cargo xtask bench`: what a boot costs next to other monitors; `bench disk`, `bench net`: what
//! disks and networks give.

mod boot;
mod linux;
mod machine_files;
mod peers;

use anyhow::Result;
use clap::{Args, Subcommand};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Options {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    boot: boot::BootOptions,
}

#[derive(Subcommand)]
enum What {
    /// Measure disks under a stock kernel, in the lab or on hardware KVM
    Disk(linux::DiskOptions),
    /// Measure networks under a stock kernel, in the lab or on hardware KVM
    Net(linux::NetOptions),
}

/// Measures, and reports.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    match &options.what {
        None => boot::run(&options.boot),
        Some(What::Disk(options)) => linux::disk(options),
        Some(What::Net(options)) => linux::net(options),
    }
}

/// An option whose value is a path.
fn with(option: &str, path: &Path) -> OsString {
    let mut text = OsString::from(option);
    text.push(path);
    text
}
