use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::thread;

use sparkler_devices::THREAD_STACK_SIZE;

use crate::console::ConsoleThreads;
use crate::control::Control;
use crate::machine::Machine;
use crate::placement::{Role, Threads};
use crate::running::RunningVm;
use crate::timeline::Milestone;
use crate::{Console, Outcome, RunError, StartError, Stats, Timeline, VmBuilder, vcpu};

/// A machine that is built and has not run: the kernel is loaded, KVM is set up, no thread exists.
///
/// Dropping it frees all it has.
#[derive(Debug)]
#[must_use = "a machine does nothing until start() is called"]
pub struct Vm {
    machine: Arc<Machine>,
    console: Option<Console>,
    threads: Arc<Threads>,
    control: Arc<Control>,
}

impl Vm {
    /// Begins to describe a machine.
    pub fn builder() -> VmBuilder {
        VmBuilder::new()
    }

    /// Runs the guest: one thread for each vCPU, and one for each direction of the console.
    ///
    /// # Errors
    /// [`StartError`] if a thread cannot be had; then nothing runs.
    pub fn start(self) -> Result<RunningVm, StartError> {
        let Self { machine, console, threads: placed, control } = self;
        control.recorder().record(Milestone::Started);
        let mut threads = Vec::with_capacity(machine.vcpu_count().into());
        for index in 0..machine.vcpu_count() {
            match spawn(index, &machine, &placed, &control) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    // Those that run already leave the guest and end.
                    control.end(Ok(Outcome::Stopped));
                    threads.into_iter().for_each(|thread| drop(thread.join()));
                    return Err(error);
                }
            }
        }
        let running = RunningVm::new(
            threads,
            Arc::clone(&machine),
            Arc::clone(&control),
            Arc::clone(&machine.serial.output),
        );
        if let Some(console) = console {
            // On failure, dropping `running` stops the vCPUs.
            running.attach(ConsoleThreads::start(console, &machine.serial, &placed, &control)?);
        }
        Ok(running)
    }

    /// The file behind guest memory, if [`MemoryBacking`](crate::MemoryBacking) asked for one: with
    /// it, another process can map guest memory.
    #[must_use]
    pub fn memory_fd(&self) -> Option<BorrowedFd<'_>> {
        self.machine.space.memory_fd()
    }

    /// The counters, which a [`RunningVm`] goes on with.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.machine.stats()
    }

    /// What happened so far.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        self.control.recorder().snapshot()
    }

    pub(crate) fn new(
        machine: Machine,
        console: Option<Console>,
        threads: Arc<Threads>,
        control: Arc<Control>,
    ) -> Self {
        Self { machine: Arc::new(machine), console, threads, control }
    }
}

fn spawn(
    index: u8,
    machine: &Arc<Machine>,
    placed: &Arc<Threads>,
    control: &Arc<Control>,
) -> Result<thread::JoinHandle<()>, StartError> {
    let name = format!("vcpu-{index}");
    let (machine, control) = (Arc::clone(machine), Arc::clone(control));
    let (placed, own_name) = (Arc::clone(placed), name.clone());
    thread::Builder::new()
        .name(name.clone())
        .stack_size(THREAD_STACK_SIZE)
        .spawn(move || match placed.enter(Role::Vcpu(index), &own_name) {
            Ok(()) => vcpu::run_caught(index, &machine, &control),
            Err(error) => {
                control.end(Err(RunError::Placement { vcpu: index, source: error.into() }));
            }
        })
        .map_err(|source| StartError::Thread { name, source })
}
