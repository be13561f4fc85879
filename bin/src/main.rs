//! `sparkler`: boot a Linux kernel in a microVM with one command line.
//!
//! Only this binary touches the process around the machine: terminal modes, signals, the panic hook, the logger.

mod affinity;
mod args;
mod built_in;
mod check;
mod console;
mod cpuid;
mod demo;
mod disk;
mod disk_format;
mod ending;
mod escape;
mod keyboard;
mod logger;
mod memory;
mod metrics;
mod net;
mod options;
mod pages;
mod report;
mod run;
mod signals;
mod terminal;
mod threads;
mod waterfall;

use std::process::ExitCode;

use args::{Cli, Command};
use clap::Parser;

fn main() -> ExitCode {
    logger::install();
    let result = match Cli::try_parse() {
        Ok(cli) => obey(&cli.command),
        Err(error) => Ok(args::explain(&error)),
    };
    let code = result.unwrap_or_else(|failure| {
        report::complain(&report::chain(&failure));
        failure.code()
    });
    ExitCode::from(code)
}

fn obey(command: &Command) -> Result<u8, report::Failure> {
    match command {
        Command::Run(args) => Ok(run::run(args)),
        Command::Demo => demo::demo(),
        Command::Check(args) => check::check(args),
        Command::Completions(args) => pages::completions(args),
        Command::Man(args) => pages::man(args),
    }
}
