//! The lab: a whole host with hardware-like KVM, emulated by QEMU, for any machine.

mod files;
mod guest_initrd;
mod image;
mod programs;
mod qemu;
mod root_disk;

use anyhow::{Context, Result};
use clap::Args;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use crate::cargo::{self, LAB_TARGET, Workspace};
use crate::setup::{self, Kernel};

pub(crate) use files::Shared;
pub(crate) use image::pack_cpio;
pub(crate) use programs::with_libraries;
pub(crate) use qemu::{Ended, Finished, Io};

/// The command ran out of time, as `timeout(1)` says it.
const EXIT_TIMED_OUT: u8 = 124;
/// The lab itself failed: nothing is known of the command.
const EXIT_LAB_FAILED: u8 = 125;

/// The stock kernel and its initrd inside the lab.
pub(crate) const GUEST_KERNEL: &str = "/boot/vmlinuz";
pub(crate) const GUEST_INITRD: &str = "/boot/initrd";

/// The variable that names the disk with a Debian root.
pub(crate) const ROOT_DISK: &str = "SPARKLER_ROOT_DISK";

#[derive(Args)]
pub(crate) struct Options {
    /// vCPUs of the lab
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    smp: u8,
    /// Memory of the lab in MiB
    #[arg(long, default_value_t = 3072, value_name = "MIB")]
    memory: u32,
    /// End the lab after this time, with exit code 124
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
    /// Take a file or folder along, to /root inside unless GUEST says where
    #[arg(long = "file", value_name = "HOST[:GUEST]")]
    files: Vec<Shared>,
    /// Attach a file as a disk: /dev/vdc and on; what is written to it is forgotten
    #[arg(long = "disk", value_name = "FILE")]
    disks: Vec<PathBuf>,
    /// Attach a disk with a Debian root, named by SPARKLER_ROOT_DISK, before other disks
    #[arg(long)]
    root_disk: bool,
    /// Take iperf3, tcpdump, ethtool and passt along
    #[arg(long)]
    network: bool,
    /// Set a variable in the command's environment
    #[arg(long = "env", value_name = "NAME=VALUE", value_parser = files::parse_variable)]
    env: Vec<(String, String)>,
    /// Bring what the command leaves in /results out to this folder
    #[arg(long, value_name = "DIR")]
    results: Option<PathBuf>,
    /// Give the command the terminal, with stdout and stderr as one (Ctrl-] x ends the lab)
    #[arg(long, short)]
    terminal: bool,
    /// Show the console of the lab's kernel on stderr
    #[arg(long, short)]
    verbose: bool,
    /// Leave our own `sparkler` out, and do not build it
    #[arg(long)]
    bare: bool,
    /// What to run, not through a shell; nothing: a shell
    #[arg(trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// `cargo xtask lab`.
pub(crate) fn run(options: &Options) -> ExitCode {
    match try_run(options) {
        Ok(Ended::Exit(code)) => ExitCode::from(code),
        Ok(Ended::TimedOut) => {
            let limit = options.timeout.unwrap_or_default();
            eprintln!("error: the command was still running after {limit} s; the lab was ended");
            ExitCode::from(EXIT_TIMED_OUT)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(EXIT_LAB_FAILED)
        }
    }
}

fn try_run(options: &Options) -> Result<Ended> {
    let shell = options.command.is_empty();
    let terminal = options.terminal || shell && std::io::stdin().is_terminal();
    let lab = Lab::prepare(if options.bare { Binary::LeaveOut } else { Binary::Build })?;
    let mut run = Run {
        command: if shell { vec!["sh".into()] } else { options.command.clone() },
        env: options.env.clone(),
        files: options.files.clone(),
        disks: options.disks.clone(),
        smp: options.smp,
        memory: options.memory,
        timeout: options.timeout.map(Duration::from_secs),
        patience: None,
        results: options.results.clone(),
        verbose: options.verbose,
        timers: Timers::Periodic,
    };
    if options.root_disk {
        run.add_root_disk(lab.guest())?;
    }
    if options.network {
        run.add_network_programs()?;
    }
    let io = if terminal { Io::Terminal } else { Io::Inherit };
    Ok(lab.run(&run, io)?.ended)
}

/// Whether the lab has our own `sparkler` on its PATH.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Build,
    LeaveOut,
}

/// Our monitor, and a stock Linux for it to run: for this host and for the lab alike.
pub(crate) struct Guest {
    /// Our release binary, linked statically.
    pub(crate) sparkler: Option<PathBuf>,
    pub(crate) kernel: Kernel,
    /// An initrd with our init, and the modules that it loads.
    pub(crate) initrd: PathBuf,
    /// The init in it, linked statically.
    pub(crate) init: PathBuf,
    cache: PathBuf,
}

impl Guest {
    /// Installs and builds what is missing.
    pub(crate) fn prepare(binary: Binary) -> Result<Self> {
        setup::guest_tools()?;
        let cache = Workspace::load()?.lab();
        let mut build = cargo::cargo("build");
        build.args(["--release", "--target", LAB_TARGET, "--package", "sparkler-lab-init"]);
        if binary == Binary::Build {
            build.args(["--package", "sparkler-cli"]);
        }
        let built = cargo::build("building sparkler, linked statically", &mut build)?;
        let find = |name| built.iter().find(|b| b.name == name).map(|b| b.executable.clone());
        let init = find("sparkler-lab-init").context("cargo built no init for the guest")?;

        let _lock = lock(&cache)?;
        let kernel = setup::kernel(&cache.join("kernel"))?;
        let initrd = guest_initrd::pack(&cache, &init, &kernel)?;
        Ok(Self { sparkler: find("sparkler"), kernel, initrd, init, cache })
    }

    /// Where things are kept that take long to make.
    pub(crate) fn cache(&self) -> &Path {
        &self.cache
    }

    /// A disk with a Debian root file system, which must not be written to. Made unless it is there,
    /// which takes minutes and an administrator's rights.
    pub(crate) fn root_disk(&self) -> Result<PathBuf> {
        let _lock = lock(&self.cache)?;
        root_disk::prepare(&self.cache)
    }
}

/// Keeps a second run from making the same files at the same time; goes with the file handle.
fn lock(cache: &Path) -> Result<File> {
    fs::create_dir_all(cache)?;
    let lock = File::create(cache.join("lock"))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)?;
    Ok(lock)
}

/// Everything that a run in the lab needs, built and cached.
pub(crate) struct Lab {
    image: image::Image,
    guest: Guest,
}

/// One run of one command in a lab of its own.
pub(crate) struct Run {
    pub(crate) command: Vec<OsString>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) files: Vec<Shared>,
    /// Files that become disks, the first of them `FIRST_DISK`.
    pub(crate) disks: Vec<PathBuf>,
    pub(crate) smp: u8,
    /// In MiB.
    pub(crate) memory: u32,
    pub(crate) timeout: Option<Duration>,
    /// The lab is ended when the command says nothing for so long.
    pub(crate) patience: Option<Duration>,
    pub(crate) results: Option<PathBuf>,
    pub(crate) verbose: bool,
    pub(crate) timers: Timers,
}

/// What the lab's own kernel makes of its timers. QEMU's emulation of SVM loses an interrupt now and then, when it
/// comes from another thread just as a guest is left: of a timer that is set anew each time it has fired, nothing is
/// heard ever after, and with two processors the one waits for the other for ever.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timers {
    /// The next interrupt makes up for the one that is lost; but nothing sleeps for less than 4 ms.
    Periodic,
    /// As precise as the hardware, for measurements, which are tried again.
    Exact,
}

impl Run {
    /// A run with the usual machine and nothing taken along.
    pub(crate) fn new(command: Vec<OsString>, timeout: Duration) -> Self {
        Self {
            command,
            env: Vec::new(),
            files: Vec::new(),
            disks: Vec::new(),
            smp: 2,
            memory: 3072,
            timeout: Some(timeout),
            patience: None,
            results: None,
            verbose: false,
            timers: Timers::Periodic,
        }
    }

    /// Attaches the disk with a Debian root, and takes along what checks its file system.
    pub(crate) fn add_root_disk(&mut self, guest: &Guest) -> Result<()> {
        self.disks.insert(0, guest.root_disk()?);
        self.env.push((ROOT_DISK.to_owned(), qemu::FIRST_DISK.to_owned()));
        self.files.extend(with_libraries(&["e2fsck"])?);
        Ok(())
    }

    /// Takes along what is on the other side of a guest's network.
    pub(crate) fn add_network_programs(&mut self) -> Result<()> {
        setup::network_programs()?;
        self.files.extend(with_libraries(&setup::NETWORK_PROGRAMS)?);
        Ok(())
    }
}

impl Lab {
    /// Installs and builds what is missing.
    pub(crate) fn prepare(binary: Binary) -> Result<Self> {
        Self::around(Guest::prepare(binary)?)
    }

    /// A lab whose guest is there already.
    pub(crate) fn around(guest: Guest) -> Result<Self> {
        setup::lab_tools()?;
        let _lock = lock(&guest.cache)?;
        Ok(Self { image: image::Image::prepare(&guest.cache, &guest.kernel)?, guest })
    }

    /// What the lab has for guests of its own.
    pub(crate) fn guest(&self) -> &Guest {
        &self.guest
    }

    /// Boots the lab, runs the command, and switches the lab off.
    pub(crate) fn run(&self, run: &Run, io: Io) -> Result<Finished> {
        let scratch = tempfile::Builder::new().prefix("sparkler-lab-").tempdir()?;
        let archive = files::pack(self, run, io, scratch.path())?;
        let results = run.results.as_ref().map(|_| scratch.path().join("results.tar"));
        let finished = qemu::boot(&self.image, run, io, &archive, results.as_deref())?;
        if let (Some(folder), Some(archive)) = (&run.results, &results) {
            files::unpack_results(archive, folder)?;
        }
        Ok(finished)
    }
}
