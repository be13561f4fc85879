//! `cargo xtask demo`: the built-in guest, then Debian's stock kernel, each where this host can run it.

use anyhow::{Context, Result, bail};
use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use crate::host::Kvm;
use crate::lab::{Binary, Ended, GUEST_INITRD, GUEST_KERNEL, Guest, Io, Lab, Run};

/// The code that the stock kernel's init is asked to end with.
pub(crate) const EXIT_CODE: u8 = 42;

/// A guest that hangs must not hang the demonstration.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs both, and fails unless both end as they should.
pub(crate) fn run() -> Result<ExitCode> {
    let kvm = Kvm::probe();
    let guest = Guest::prepare(Binary::Build)?;
    let sparkler = guest.sparkler.clone().context("cargo built no `sparkler`")?;
    let stock_kernel = format!("Debian's stock kernel {}, unmodified", guest.kernel.package);

    if kvm == Kvm::Hardware {
        heading("1 of 2: the built-in guest, on this host's hardware KVM");
        on_this_host(&sparkler, &["demo".into()], 0)?;
        heading(&format!("2 of 2: {stock_kernel}, on this host's hardware KVM"));
        on_this_host(&sparkler, &stock_boot(&guest.kernel.vmlinuz, &guest.initrd), EXIT_CODE)?;
    } else {
        let lab = Lab::around(guest)?;
        if kvm == Kvm::None {
            heading("1 of 2: the built-in guest, in the lab: this host has no usable /dev/kvm");
            in_the_lab(&lab, vec!["demo".into()], 0)?;
        } else {
            heading(&format!("1 of 2: the built-in guest, on this host's /dev/kvm ({kvm})"));
            on_this_host(&sparkler, &["demo".into()], 0)?;
        }
        heading(&format!(
            "2 of 2: {stock_kernel}, in the lab: it needs hardware KVM, here is {kvm}"
        ));
        in_the_lab(&lab, stock_boot(Path::new(GUEST_KERNEL), Path::new(GUEST_INITRD)), EXIT_CODE)?;
    }
    println!("\nBoth guests ended as they should.");
    Ok(ExitCode::SUCCESS)
}

/// The words after `sparkler` that boot a stock kernel to our init and end with [`EXIT_CODE`].
pub(crate) fn stock_boot(kernel: &Path, initrd: &Path) -> Vec<OsString> {
    let cmdline = format!("console=ttyS0 quiet panic=-1 exit={EXIT_CODE}");
    let mut words: Vec<OsString> =
        vec!["run".into(), kernel.into(), "--initrd".into(), initrd.into()];
    words
        .extend(["--cmdline", &cmdline, "-m", "256M", "-c", "4", "--timeline"].map(OsString::from));
    words
}

fn heading(text: &str) {
    println!("\n== {text}");
}

fn on_this_host(sparkler: &Path, words: &[OsString], expected: u8) -> Result<()> {
    let mut command = Command::new("timeout");
    command.arg(LIMIT.as_secs().to_string()).arg(sparkler).args(words).stdin(Stdio::null());
    let status = show(words, || command.status().context("cannot run `timeout`"))?;
    match status.code() {
        Some(124) => bail!("`sparkler` was still running after {} s", LIMIT.as_secs()),
        code => judge(code, expected),
    }
}

fn in_the_lab(lab: &Lab, words: Vec<OsString>, expected: u8) -> Result<()> {
    let mut command: Vec<OsString> = vec!["sparkler".into()];
    command.extend(words.iter().cloned());
    match show(&words, || lab.run(&Run::new(command, LIMIT), Io::Show))?.ended {
        Ended::TimedOut => bail!("`sparkler` was still running after {} s", LIMIT.as_secs()),
        Ended::Exit(code) => judge(Some(code.into()), expected),
    }
}

fn show<T>(words: &[OsString], run: impl FnOnce() -> Result<T>) -> Result<T> {
    let words = words.iter().map(|word| word.to_string_lossy());
    let quoted = words.map(|w| if w.contains(' ') { format!("\"{w}\"") } else { w.into_owned() });
    println!("$ sparkler {}", quoted.collect::<Vec<_>>().join(" "));
    run()
}

fn judge(code: Option<i32>, expected: u8) -> Result<()> {
    match code {
        Some(code) if code == i32::from(expected) => {
            println!("-- exit code {code}, as it should be");
            Ok(())
        }
        Some(code) => bail!("`sparkler` ended with exit code {code}, not {expected}"),
        None => bail!("`sparkler` was ended by a signal"),
    }
}
