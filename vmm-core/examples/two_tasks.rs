//! A scheduler's view: two CPUs and 4 GiB of this host are handed to two machines, a task in each.
//!
//! ```text
//! cargo run --release -p sparkler --example two_tasks -- \
//!     --kernel vmlinuz --initrd initrd --disk root.ext4 --task serve.sh
//! ```
//!
//! A machine has a CPU to itself, 2 GiB, the disk, which it cannot change, and a network of its own, on which
//! its task serves port 80: 8080 and 8081 on this host. The initrd's init mounts the disk and runs the
//! task, which comes on a second disk whose serial number is `job` (`lab/init` is such an init; a `job` is
//! what it calls it). The task finds its number in `/proc/cmdline`: `task=1`. The host fetches from both,
//! stops both, and prints what each used.

use std::error::Error;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use sparkler::virtio::block::Disk;
use sparkler::virtio::net::{Net, Publish};
use sparkler::{Console, CpuSet, Initrd, Kernel, MemorySize, Placement, RunningVm, Vm};

#[derive(Parser)]
struct Options {
    #[arg(long)]
    kernel: PathBuf,
    #[arg(long)]
    initrd: PathBuf,
    /// An ext4 file system
    #[arg(long)]
    disk: PathBuf,
    /// A shell script
    #[arg(long)]
    task: PathBuf,
    /// One CPU for each machine
    #[arg(long, default_value = "0,1")]
    cpus: CpuSet,
    /// How many seconds both tasks may take to answer
    #[arg(long, default_value_t = 60)]
    patience: u64,
}

/// A machine, and where its task answers.
struct Task {
    number: u16,
    cpu: u32,
    port: u16,
    running: RunningVm,
}

fn main() -> Result<(), Box<dyn Error>> {
    let options = Options::parse();
    let deadline = Instant::now() + Duration::from_secs(options.patience);
    let mut tasks = Vec::new();
    for ((number, port), cpu) in [(1, 8080), (2, 8081)].into_iter().zip(options.cpus.iter()) {
        tasks.push(start(&options, number, cpu, port)?);
    }
    for Task { number, port, running, .. } in &tasks {
        let answer = fetch(*port, running, deadline)?;
        println!("task {number} answers on port {port}: {}", answer.trim_end());
    }
    for Task { number, cpu, running, .. } in tasks {
        let cpu_time = cpu_time(&name(number))?;
        running.handle().stop();
        let outcome = running.wait()?;
        let stats = running.stats();
        let (resident, exits) = (stats.memory_resident >> 20, stats.exits());
        println!(
            "task {number} on CPU {cpu}: {outcome}; {resident} MiB in use, {cpu_time:.1?} of CPU time"
        );
        let exits = exits.iter().filter(|(_, count)| *count > 0);
        let exits: Vec<_> = exits.map(|(reason, count)| format!("{count} {reason}")).collect();
        println!("    exits: {}", exits.join(", "));
        for device in stats.devices {
            let counters: Vec<_> = device.counters.iter().filter(|(_, n)| *n > 0).collect();
            println!("    device of type {}: {counters:?}", device.device_type);
        }
    }
    Ok(())
}

fn start(options: &Options, number: u16, cpu: u32, port: u16) -> Result<Task, Box<dyn Error>> {
    let cpus = CpuSet::from_iter([cpu]);
    let placement = Placement::new().vcpus(cpus.clone()).devices(cpus);
    let vm = Vm::builder()
        .memory(MemorySize::gib(2))
        .placement(placement.name_prefix(name(number)))
        .kernel(Kernel::file(&options.kernel)?)
        .initrd(Initrd::file(&options.initrd)?)
        .cmdline(format!("console=ttyS0 quiet panic=-1 root=/dev/vda ro task={number}"))
        .console(Console::output(io::stderr()))
        .disk(Disk::open_read_only(&options.disk)?)
        .disk(Disk::open_read_only(&options.task)?.serial("job")?)
        .net(Net::user().publish(Publish::new(port, 80)).start()?)
        .build()?;
    Ok(Task { number, cpu, port, running: vm.start()? })
}

/// What the threads of a machine are called, up to a slash.
fn name(number: u16) -> String {
    format!("task{number}")
}

/// How long the threads of a machine have run. They are this process's, and known by their names.
fn cpu_time(machine: &str) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        // A thread may end meanwhile, and then has no files any more.
        let file = |name| fs::read_to_string(task.join(name)).unwrap_or_default();
        if file("comm").split_once('/').is_some_and(|(prefix, _)| prefix == machine) {
            let running = file("schedstat").split(' ').next().and_then(|it| it.parse::<u64>().ok());
            nanoseconds += running.unwrap_or(0);
        }
    }
    Ok(Duration::from_nanos(nanoseconds))
}

/// Asks until there is an answer: a task takes its time to get ready, and has no other way to say so.
fn fetch(port: u16, running: &RunningVm, deadline: Instant) -> Result<String, Box<dyn Error>> {
    while Instant::now() < deadline {
        match get(port) {
            Ok(answer) if answer.starts_with("HTTP/1.0 200") => {
                return Ok(answer
                    .split_once("\r\n\r\n")
                    .map_or(String::new(), |it| it.1.to_owned()));
            }
            _ => thread::sleep(Duration::from_millis(100)),
        }
        if let Some(outcome) = running.wait_timeout(Duration::ZERO)? {
            return Err(format!("the task for port {port} has ended: {outcome}").into());
        }
    }
    Err(format!("no answer on port {port}").into())
}

fn get(port: u16) -> io::Result<String> {
    let limit = Duration::from_secs(10);
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
