//! `sparkler run`: flags in, builder calls, exit code out.

use std::{path::Path, sync::Arc};

use sparkler::virtio::rng::Rng;
use sparkler::{Cmdline, Initrd, Kernel, Placement, Vm, VmBuilder};

use crate::{
    args::RunArgs,
    console, disk_format,
    ending::Ending,
    metrics::{Server, Socket},
    report::{self, Cannot, Ended, Failure},
    signals,
    terminal::{RawMode, Terminal},
};

pub(crate) fn run(args: &RunArgs) -> u8 {
    let result = boot(args);
    // No machine is left that could say more.
    log::logger().flush();
    let (code, json) = match &result {
        Ok(ended) => {
            ended.complain();
            if args.timeline {
                ended.draw_timeline();
            }
            (ended.code(), args.json.then(|| ended.to_json()))
        }
        Err(failure) => {
            report::complain(&report::chain(failure));
            (failure.code(), args.json.then(|| failure.to_json()))
        }
    };
    json.iter().for_each(report::print_json);
    code
}

fn boot(args: &RunArgs) -> Result<Ended, Failure> {
    let mut builder = builder(args)?;
    let terminal = if args.no_console { None } else { Terminal::on_stdin() };
    let mut keyboard = None;
    if !args.no_console {
        let streams = console::on_standard_streams(terminal.as_ref());
        let streams =
            streams.map_err(Cannot::to("use standard input and output as the console"))?;
        builder = builder.console(streams.0);
        keyboard = streams.1;
    }
    let vm = builder.build().map_err(Failure::refused)?;

    // From here on a signal ends the machine, no longer the process.
    let caught = signals::catch(terminal.as_deref()).map_err(Cannot::to("catch signals"))?;
    // Its file is removed however the machine ends.
    let metrics = args.metrics.as_deref().map(Socket::bind).transpose();
    let metrics = metrics.map_err(Failure::refused)?;
    let raw = terminal.clone().map(RawMode::new);
    let running = Arc::new(vm.start().map_err(Failure::failed)?);
    let metrics = metrics.map(|socket| Server::start(socket, Arc::clone(&running))).transpose();
    let metrics = metrics.map_err(Cannot::to("start the thread of --metrics"))?;
    let ending = Arc::new(Ending::default());
    ending.arm(running.handle());
    let acts = caught.act(Arc::clone(&ending), terminal);
    acts.map_err(Cannot::to("start the thread for signals"))?;
    if let Some(keyboard) = keyboard {
        let reads = keyboard.start(Arc::clone(&ending));
        reads.map_err(Cannot::to("start the thread for the keyboard"))?;
    }
    let outcome = running.wait();
    drop(metrics);
    drop(raw);
    Ok(Ended {
        outcome,
        signal: ending.signal(),
        timeline: running.timeline(),
        stats: running.stats(),
    })
}

fn builder(args: &RunArgs) -> Result<VmBuilder, Failure> {
    let mut kernel = Kernel::file(&args.kernel).map_err(Failure::refused)?;
    if let Some(folder) = &args.kernel_cache {
        kernel = kernel.cached(folder).map_err(Failure::refused)?;
    }
    if args.map_kernel {
        if args.kernel_cache.is_none() && is_packed(&args.kernel) {
            report::complain(
                "--map-kernel has no effect on a bzImage; add --kernel-cache FOLDER, or unpack it",
            );
        }
        kernel = kernel.mapped();
    }
    let mut builder = Vm::builder()
        .vcpus(args.vcpus)
        .memory(args.memory.size())
        .memory_backing(args.memory.backing().map_err(Failure::refused)?)
        .placement(placement(args))
        .cpu_template(args.cpu_template.into())
        .cmdline(cmdline(args))
        .acpi(!args.no_acpi)
        .kernel(kernel);
    if let Some(path) = &args.initrd {
        builder = builder.initrd(Initrd::file(path).map_err(Failure::refused)?);
    }
    for disk in &args.disks {
        builder = builder.disk(disk.open().map_err(Failure::refused)?);
    }
    for net in &args.nets {
        builder = builder.net(net.open().map_err(Failure::refused)?);
    }
    if args.rng {
        builder = builder.device(rng()?);
    }
    Ok(builder)
}

/// Whether the kernel has to be unpacked, so that there is nothing in its file to map.
fn is_packed(kernel: &Path) -> bool {
    disk_format::start(kernel).is_some_and(|start| !start.starts_with(b"\x7fELF"))
}

fn rng() -> Result<Rng, Failure> {
    let opened =
        Rng::new().map_err(|source| Cannot { what: "open /dev/urandom for --rng", source });
    opened.map_err(Failure::refused)
}

/// The user's words last, so that they overrule ours.
fn cmdline(args: &RunArgs) -> String {
    if args.no_fast_boot {
        return args.cmdline.clone();
    }
    [Cmdline::FAST_BOOT, &args.cmdline].join(" ")
}

fn placement(args: &RunArgs) -> Placement {
    let placement = args.affinities.iter().fold(Placement::new(), |all, arg| arg.add_to(all));
    let placement = args.nice.into_iter().fold(placement, Placement::nice);
    args.thread_prefix.iter().fold(placement, Placement::name_prefix)
}
