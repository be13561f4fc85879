//! Runs one command in a throwaway machine and gets its output and exit code back, within a time limit:
//!
//! ```text
//! cargo build --release -p sparkler --example exec --target x86_64-unknown-linux-musl
//! target/x86_64-unknown-linux-musl/release/examples/exec --kernel vmlinuz --root DIR --timeout 10 -- COMMAND…
//! ```
//!
//! The root directory is packed into the machine's memory: what the command does to it is forgotten. This
//! program is also the machine's init, so it must be linked statically. The kernel needs nothing but a
//! UART: a distribution's stock one will do. Exit codes: the command's; 124 if the time ran out; 125 if
//! there was no answer.

mod cpio;
mod init;

use std::error::Error;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use sparkler::{Console, Initrd, Kernel, MemorySize, Outcome, Vm};

const TIMED_OUT: u8 = 124;
const NO_ANSWER: u8 = 125;

#[derive(Parser)]
struct Options {
    /// A Linux kernel: vmlinux or bzImage
    #[arg(long)]
    kernel: PathBuf,
    /// The directory that is the command's root
    #[arg(long)]
    root: PathBuf,
    /// The command is ended after so many seconds, the machine's start included
    #[arg(long, default_value_t = 60)]
    timeout: u64,
    /// The machine's memory, which holds the root directory twice while it starts
    #[arg(long, default_value = "512M")]
    memory: MemorySize,
    /// What to run: an absolute path, or a name that is looked for as usual
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> ExitCode {
    if std::env::args_os().next().is_some_and(|name| name == init::PATH) {
        return init::main();
    }
    match run(&Options::parse()) {
        Ok(Some(Outcome::Exited(code))) => ExitCode::from(code),
        Ok(Some(outcome)) => {
            eprintln!("exec: no exit code: {outcome}");
            ExitCode::from(NO_ANSWER)
        }
        Ok(None) => {
            eprintln!("exec: the time ran out");
            ExitCode::from(TIMED_OUT)
        }
        Err(error) => {
            let mut causes = error.to_string();
            let mut source = error.source();
            while let Some(error) = source {
                causes = format!("{causes}: {error}");
                source = error.source();
            }
            eprintln!("exec: {causes}");
            ExitCode::from(NO_ANSWER)
        }
    }
}

/// How the machine ended, or `None` if it had not in time; then it is stopped.
fn run(options: &Options) -> Result<Option<Outcome>, Box<dyn Error>> {
    let vm = Vm::builder()
        .memory(options.memory)
        .kernel(Kernel::file(&options.kernel)?)
        .initrd(Initrd::bytes(pack(&options.root, &options.command)?))
        .cmdline(format!("console=ttyS0 quiet loglevel=1 panic=-1 rdinit={}", init::PATH))
        .console(Console::output(std::io::stdout()))
        .build()?;
    let running = vm.start()?;
    // Whatever the machine still does, it ends when `running` goes.
    Ok(running.wait_timeout(Duration::from_secs(options.timeout))?)
}

/// The root directory with our init and the command in it.
fn pack(root: &Path, command: &[OsString]) -> Result<Vec<u8>, Box<dyn Error>> {
    if !cfg!(target_feature = "crt-static") {
        return Err(
            "build this with --target x86_64-unknown-linux-musl: it is the guest's init".into()
        );
    }
    let mut archive = cpio::Archive::default();
    archive.tree(root).map_err(|error| format!("cannot pack {}: {error}", root.display()))?;
    for folder in ["dev", "proc", "sys", init::FOLDER] {
        archive.folder(folder)?;
    }
    let words: Vec<_> = command.iter().map(|word| word.as_bytes()).collect();
    archive.file(init::COMMAND, 0o600, &words.join(&0))?;
    archive.file(init::PATH, 0o700, &std::fs::read("/proc/self/exe")?)?;
    Ok(archive.finish()?)
}
