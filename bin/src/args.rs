//! The command line, and every word of its help.

use std::path::PathBuf;

use clap::{
    ArgAction, Args, Parser, Subcommand, ValueHint,
    builder::styling::{AnsiColor, Styles},
};

use crate::affinity::AffinityArg;
use crate::cpuid::TemplateArg;
use crate::disk::DiskArg;
use crate::memory::MemoryArg;
use crate::net::NetArg;
use crate::options::{vcpus, whole_number};
use crate::report;

const STYLES: Styles = Styles::styled()
    .header(AnsiColor::Yellow.on_default().bold())
    .usage(AnsiColor::Yellow.on_default().bold())
    .literal(AnsiColor::Cyan.on_default())
    .placeholder(AnsiColor::Green.on_default());

const START_HERE: &str = "\
Start here:
  sparkler check                      is this host fit, and if not, what to do
  sparkler demo                       boot the built-in guest; nothing to download
  sparkler run VMLINUZ                boot a stock distribution kernel

`sparkler help run` has the keys, the exit codes, and more examples.";

const RUN_SHORT: &str = "\
Ctrl-A x ends the machine. `--help` has the keys, the exit codes, and examples.";

const RUN_LONG: &str = "\
Keys (when standard input is a terminal, and sparkler in its foreground):
  Ctrl-A x         end the machine
  Ctrl-A Ctrl-A    send one Ctrl-A to the guest
  Ctrl-A h         print these keys
  All others go to the guest, Ctrl-C too. Input from a pipe or a file goes to the
  guest as it is; its end does not end the machine.

Exit codes:
  N      the guest wrote N (0-255) to the exit port, 0xf4
  0      the guest switched itself off, or reset itself; so does a Linux that
         panics, by the default command line's panic=-1: --json tells it, 'reset'
  2      nothing was started: usage, bad input, or no usable /dev/kvm
  101    a defect of sparkler: it panicked
  124    stopped with Ctrl-A x
  125    the monitor failed
  126    the guest crashed
  128+n  ended by signal n (130 SIGINT, 143 SIGTERM, ...)
  A guest may choose any of these codes itself; --json tells them apart.

Examples:
  sparkler run /boot/vmlinuz-$(uname -r) --initrd /boot/initrd.img-$(uname -r)
  sparkler run vmlinux -m 1G -c 4 --cmdline 'console=ttyS0 quiet'
  sparkler run vmlinuz --initrd initrd.img --disk root.ext4 --disk data.img,ro \\
      --cmdline 'console=ttyS0 panic=-1 root=/dev/vda rw'
  sparkler run vmlinux --disk root.ext4 --net user,publish=8080:80 \\
      --cmdline 'console=ttyS0 panic=-1 root=/dev/vda rw'
  sparkler run vmlinuz --initrd test.cpio --timeline </dev/null >boot.log
  sparkler run vmlinuz --initrd test.cpio --json 2>&1 >/dev/null | tail -n 1";

/// Boot a Linux kernel in a microVM.
///
/// sparkler boots a stock kernel (bzImage or ELF) in a virtual machine on this host's KVM, with its
/// serial console on your terminal, and ends with the guest's exit code.
#[derive(Debug, Parser)]
#[command(name = "sparkler", version, styles = STYLES, max_term_width = 100)]
#[command(after_help = START_HERE, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Box<RunArgs>),
    /// Boot the built-in guest in several ways; nothing to download
    ///
    /// Prints what the guest did and where the time of its boot went. The exit code is 0 if all
    /// went as it should, 1 if not, and 2 if there is no usable KVM.
    Demo,
    Check(CheckArgs),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

/// Boot a kernel, with its console here
///
/// Boots KERNEL and stays until the guest ends. The guest's first serial port is standard input and
/// output; everything sparkler itself has to say goes to standard error.
#[derive(Debug, Args)]
#[command(after_help = RUN_SHORT, after_long_help = RUN_LONG, disable_help_flag = true)]
pub(crate) struct RunArgs {
    /// Kernel image: bzImage (/boot/vmlinuz-VERSION) or 64-bit ELF (vmlinux)
    ///
    /// Told apart by content, never by name. A packed bzImage is unpacked here, on the host.
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) kernel: PathBuf,

    /// Initial ramdisk, as the kernel wants it (cpio, packed or not)
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = "Guest")]
    pub(crate) initrd: Option<PathBuf>,

    /// Kernel command line, instead of the default one
    #[arg(long, value_name = "STRING", default_value = "console=ttyS0 panic=-1")]
    #[arg(allow_hyphen_values = true, help_heading = "Guest")]
    pub(crate) cmdline: String,

    /// Leave out the words for a fast boot that otherwise stand in front of the command line
    ///
    /// So far there is one: cryptomgr.notests (ciphers do not test themselves).
    #[arg(long, help_heading = "Guest")]
    pub(crate) no_fast_boot: bool,

    // The help's brackets are no links.
    #[allow(rustdoc::broken_intra_doc_links)]
    /// Memory: 256M, 1G, 1GiB; a plain number is in MiB
    ///
    /// SIZE[,hugepages=2M|1G][,thp=on|off][,prefault][,shared|file=PATH]. Taken from the host as the
    /// guest touches it, not before; all at once with prefault. hugepages: from the host's pool
    /// (vm.nr_hugepages). thp: transparent huge pages; without it as the host is set. shared: a memfd.
    /// file: this file, which must be large enough and loses its content. A comma in PATH is written
    /// twice.
    #[arg(short, long, value_name = "SIZE[,OPTION]...", default_value = "256M")]
    #[arg(allow_hyphen_values = true, help_heading = "Machine")]
    pub(crate) memory: MemoryArg,

    /// Map the kernel's file into the machine instead of reading it (ELF, or with --kernel-cache)
    ///
    /// All machines with this kernel have its text in memory once, and the first instruction comes sooner;
    /// the boot as a whole takes longer where huge pages are to be had, which only reading fills. The
    /// file must stay as it is meanwhile: if it is made shorter, the machines end without a word (SIGBUS).
    #[arg(long, help_heading = "Machine")]
    pub(crate) map_kernel: bool,

    /// Keep a bzImage's unpacked kernel in this folder, and take it from there next time
    ///
    /// By its content: a new kernel of the same name is another one. The folder must be there, and must
    /// not be writable by others. Files in it may be removed at any time.
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    #[arg(help_heading = "Machine")]
    pub(crate) kernel_cache: Option<PathBuf>,

    /// Virtual CPUs, 1 to 64
    #[arg(short = 'c', long, value_name = "N", default_value_t = 1, help_heading = "Machine")]
    #[arg(allow_hyphen_values = true, value_parser = vcpus)]
    pub(crate) vcpus: u32,

    /// Where threads run: vCPU 0 on host CPU 2 is 0=2; vcpus=2-3; devices=0,1
    ///
    /// THREADS is the number of a vCPU, counted from 0, or vcpus for those that are not named, or
    /// devices, which includes the console. Without it they run where sparkler may run.
    #[arg(long = "cpu-affinity", value_name = "THREADS=CPUS", help_heading = "Machine")]
    pub(crate) affinities: Vec<AffinityArg>,

    /// Nice value of the machine's threads, -20 to 19
    #[arg(long, value_name = "N", allow_hyphen_values = true, help_heading = "Machine")]
    #[arg(value_parser = whole_number::<i32>)]
    pub(crate) nice: Option<i32>,

    /// Processor that the guest sees: the host's, or what its vendor's servers have in common
    ///
    /// With baseline, a machine looks the same on hosts of several generations. `sparkler check
    /// --cpuid --cpu-template baseline` says whether this host has all of it.
    #[arg(long, value_name = "NAME", value_enum, default_value_t, help_heading = "Machine")]
    pub(crate) cpu_template: TemplateArg,

    /// Name the machine's threads TEXT/vcpu-0 and so on; up to 7 characters
    #[arg(long, value_name = "TEXT", help_heading = "Machine")]
    pub(crate) thread_prefix: Option<String>,

    /// Describe the machine by an MP table, without ACPI
    ///
    /// Disks and networks are then named on the command line (virtio_mmio.device=), which distribution
    /// kernels do not read.
    #[arg(long, help_heading = "Machine")]
    pub(crate) no_acpi: bool,

    // The help's brackets are no links.
    #[allow(rustdoc::broken_intra_doc_links)]
    /// A disk: a raw file or block device, /dev/vda in the guest, then /dev/vdb, ...
    ///
    /// PATH[,ro][,direct][,serial=TEXT][,queues=N][,iops=N][,bps=SIZE]. queues: 1 to 16. ro: the guest cannot write,
    /// and others may read the file too; without it nobody else may use it. direct: around the
    /// host's page cache. iops and bps (bytes; K, M, G): how much the guest may ask in a second. A
    /// comma in PATH is written twice. The format is raw, always: nothing is guessed from content.
    #[arg(long = "disk", value_name = "PATH[,OPTION]...", value_hint = ValueHint::FilePath)]
    #[arg(help_heading = "Devices")]
    pub(crate) disks: Vec<DiskArg>,

    // The help's brackets are no links.
    #[allow(rustdoc::broken_intra_doc_links)]
    /// A network card: tap=NAME, user, or stream=PATH
    ///
    /// tap=NAME[,queues=N][,vhost]: on a tap of this host, which is made if it is not there and we may;
    /// with vhost, the host's kernel moves the frames (/dev/vhost-net), uncounted and without limits.
    /// user[,publish=[ADDRESS/]HOST:GUEST]...[,no-loopback]: without any rights, by passt, which must be
    /// installed; the guest gets its address by DHCP, finds this host's loopback address at its
    /// gateway's (not with no-loopback, which is for guests that you do not trust), and is reached at published TCP ports. stream=PATH: frames
    /// over a Unix socket, as QEMU's -netdev stream speaks it. All of them: mac=ADDRESS (at random
    /// without it), mtu=N, pps=N and bps=SIZE: how many frames and bytes (K, M, G) may go each way in
    /// a second. A comma in PATH is written twice.
    #[arg(long = "net", value_name = "NETWORK[,OPTION]...", help_heading = "Devices")]
    pub(crate) nets: Vec<NetArg>,

    /// A source of entropy for the guest (virtio-rng)
    #[arg(long, help_heading = "Devices")]
    pub(crate) rng: bool,

    /// Leave standard input and output alone: the guest's serial port goes nowhere
    #[arg(long, help_heading = "Output")]
    pub(crate) no_console: bool,

    /// Afterwards, draw where the time of the boot went (standard error)
    #[arg(long, help_heading = "Output")]
    pub(crate) timeline: bool,

    /// Afterwards, print outcome, exit code, timeline and counters as JSON (standard error)
    ///
    /// One object on one line, the last one on standard error.
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// While the machine runs, tell its counters to whoever connects to this Unix socket
    ///
    /// In the text format of Prometheus, by HTTP (curl --unix-socket PATH http://localhost/metrics; as
    /// JSON: /metrics.json) or without (socat - UNIX-CONNECT:PATH). The socket is made here and removed at
    /// the end; one that is in use is left alone. Who may connect is up to the umask and the folder.
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath, help_heading = "Output")]
    pub(crate) metrics: Option<PathBuf>,

    /// Print help: -h in short, --help with the keys, the exit codes, and examples
    #[arg(short, long, action = ArgAction::Help, help_heading = "Output")]
    help: Option<bool>,
}

/// Is this host fit, and if not, what to do
///
/// Looks at /dev/kvm, runs the built-in guest on it, and measures how fast guest kernel code is
/// here. The exit code is 0 on a fit host, 1 on another.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Print the findings as one JSON object instead
    #[arg(long)]
    pub(crate) json: bool,

    /// Print what CPUID says to a guest here, instead
    ///
    /// One line for each leaf and subleaf. The exit code is 0 if this host has all of the template,
    /// 1 if not, 2 if there is no usable KVM; what is missing is printed after the leaves.
    #[arg(long)]
    pub(crate) cpuid: bool,

    /// With --cpuid: the template that the guest has
    #[arg(long, value_name = "NAME", value_enum, default_value_t, requires = "cpuid")]
    pub(crate) cpu_template: TemplateArg,
}

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  sparkler completions bash >~/.local/share/bash-completion/completions/sparkler"
)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// Print a manual page
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sparkler man run | man -l -")]
pub(crate) struct ManArgs {
    /// The page of this subcommand, instead of the main one
    #[arg(value_parser = ["run", "demo", "check", "completions", "man"])]
    pub(crate) subcommand: Option<String>,
}

/// Prints help and version as clap does, and what is wrong with the arguments on one line.
pub(crate) fn explain(error: &clap::Error) -> u8 {
    use clap::error::ErrorKind as Kind;
    if matches!(
        error.kind(),
        Kind::DisplayHelp | Kind::DisplayVersion | Kind::DisplayHelpOnMissingArgumentOrSubcommand
    ) {
        // A closed standard output is no error of ours.
        let _ = error.print();
        return u8::try_from(error.exit_code()).unwrap_or(report::REFUSED);
    }
    report::complain(&one_line(&error.to_string()));
    report::REFUSED
}

/// What clap says before it repeats the usage, on one line and without its `error:`.
fn one_line(message: &str) -> String {
    let said = message.split("\nUsage:").next().unwrap_or(message);
    let said = said.split("\nFor more information").next().unwrap_or(said);
    let words: Vec<&str> = said.split_whitespace().collect();
    let line = words.join(" ").replace(" tip: ", "; ");
    line.strip_prefix("error: ").unwrap_or(&line).to_owned()
}
