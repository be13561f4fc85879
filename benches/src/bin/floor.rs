//! Prints what the least possible use of KVM costs on this host, step by step: see
//! `sparkler_benches::floor`.
//!
//! ```text
//! floor [--irqchip | --local-apics] [--exit] [--json] [--console] [--memory=MIB] [--runs=N] [--cmdline=TEXT] [ELF]
//! ```
//! Without `ELF` it runs the built-in guest. It prints microseconds: for each step the median of the
//! runs, and their sum, which is one machine of `--runs=N` that are created and destroyed in one process.

use std::error::Error;
use std::io::Write;

use sparkler_benches::floor::{self, Config, Irqchip, STEPS};

fn main() -> Result<(), Box<dyn Error>> {
    let mut config = Config {
        elf: sparkler_guest::ELF,
        cmdline: "quiet",
        memory: 128 << 20,
        irqchip: false,
        until_exit: false,
    };
    let mut irqchip = Irqchip::None;
    let (mut json, mut console, mut runs, mut path) = (false, false, 1usize, None);
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for argument in &arguments {
        match argument.split_once('=').unwrap_or((argument, "")) {
            ("--irqchip", _) => irqchip = Irqchip::Full,
            ("--local-apics", _) => irqchip = Irqchip::LocalApics,
            ("--exit", _) => config.until_exit = true,
            ("--json", _) => json = true,
            ("--console", _) => console = true,
            ("--memory", mib) => config.memory = mib.parse::<usize>()? << 20,
            ("--runs", count) => runs = count.parse::<usize>()?.max(1),
            ("--cmdline", text) => config.cmdline = text,
            (flag, _) if flag.starts_with('-') => return Err(format!("no flag {flag}").into()),
            _ => path = Some(argument),
        }
    }
    let file = path.map(std::fs::read).transpose()?;
    config.elf = file.as_deref().unwrap_or(config.elf);

    let mut reports = Vec::new();
    for _ in 0..runs {
        let report = floor::run_with(&config, irqchip)?;
        if console {
            std::io::stderr().write_all(&report.console)?;
        }
        reports.push(report);
    }

    let mut rows: Vec<(&str, f64)> = Vec::new();
    for step in STEPS {
        let mut times: Vec<_> = reports
            .iter()
            .flat_map(|report| &report.steps)
            .filter(|(name, _)| *name == step)
            .map(|(_, duration)| duration.as_secs_f64() * 1e6)
            .collect();
        times.sort_by(f64::total_cmp);
        if let Some(median) = times.get(times.len() / 2) {
            rows.push((step, *median));
        }
    }
    rows.push(("sum", rows.iter().map(|(_, time)| time).sum()));
    let exit_code = reports.last().and_then(|report| report.exit_code);
    print_rows(&rows, exit_code, json);
    Ok(())
}

fn print_rows(rows: &[(&str, f64)], exit_code: Option<u8>, json: bool) {
    if json {
        let fields: Vec<_> =
            rows.iter().map(|(name, time)| format!("\"{name}\":{time:.1}")).collect();
        let exit_code = exit_code.map_or("null".into(), |code| code.to_string());
        println!("{{\"microseconds\":{{{}}},\"exit_code\":{exit_code}}}", fields.join(","));
        return;
    }
    for (name, time) in rows {
        println!("{name:<12}{time:>10.1} µs");
    }
    if let Some(code) = exit_code {
        println!("exit code {code}");
    }
}
