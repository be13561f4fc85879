//! A vCPU and its thread.

mod crash;

use std::io;
use std::panic::{self, AssertUnwindSafe};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::control::{Control, panicked};
use crate::machine::Machine;
use crate::stats::Reason;
use crate::sys::signal;
use crate::timeline::Milestone;
use crate::{Outcome, RunError};

/// Runs vCPU `index` on the calling thread until the machine ends, by this vCPU or otherwise. A panic,
/// ours or that of a device, ends the machine and stays in this thread.
pub(crate) fn run_caught(index: u8, machine: &Machine, control: &Control) {
    // What a panic may leave half-done is this machine's own, and this machine ends.
    if let Err(panic) = panic::catch_unwind(AssertUnwindSafe(|| run(index, machine, control))) {
        control.end(Err(panicked(&format!("vcpu-{index}"), &*panic)));
    }
}

fn run(index: u8, machine: &Machine, control: &Control) {
    let signals = |error: io::Error| RunError::Signals { vcpu: index, source: error.into() };
    let _thread = match control.enter_vcpu_thread(index) {
        Ok(thread) => thread,
        Err(error) => {
            control.end(Err(signals(error)));
            return;
        }
    };
    if index == 0 {
        control.recorder().record(Milestone::GuestEntered);
    }
    loop {
        let Some(mut slot) = machine.vcpu(index) else { return };
        let Some(fd) = slot.as_mut() else { return };
        let mut vcpu = Vcpu { index, fd, machine };
        let mut end = None;
        while end.is_none() && !control.is_wanted() {
            end = vcpu.run_once().err();
        }
        if end.is_none() && !control.is_ending() {
            end = vcpu.settle().err();
        }
        drop(slot);
        if let Some(how) = end {
            control.end(how);
        }
        if !control.park(|| Ok(machine.restart(control.recorder(), &|| control.is_ending())?)) {
            return;
        }
    }
}

/// A vCPU, while its thread has it.
struct Vcpu<'a> {
    index: u8,
    fd: &'a mut VcpuFd,
    machine: &'a Machine,
}

/// What `KVM_RUN` came back with, if the machine goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// An access of the guest, which was served. KVM completes it when it is entered again.
    Served,
    /// It was kicked, or waits for something.
    Interrupted,
}

impl Vcpu<'_> {
    /// Lets KVM complete the access that it left the guest for, and no instruction more: from then on, the
    /// vCPU's state is all there.
    fn settle(&mut self) -> Result<(), Result<Outcome, RunError>> {
        self.fd.set_kvm_immediate_exit(1);
        // One instruction may make many accesses, one after the other.
        let result = loop {
            match self.run_once() {
                Ok(Exit::Served) => {}
                Ok(Exit::Interrupted) => break Ok(()),
                Err(how) => break Err(how),
            }
        };
        self.fd.set_kvm_immediate_exit(0);
        result
    }

    /// Enters the guest once and serves its exit. An `Err` is how the machine ends.
    fn run_once(&mut self) -> Result<Exit, Result<Outcome, RunError>> {
        let machine = self.machine;
        let count = |reason| {
            if let Some(exits) = machine.exits.get(usize::from(self.index)) {
                exits.count(reason);
            }
        };
        let cause = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                count(Reason::PortWrite);
                machine.ports.write(u64::from(port), data);
                return Ok(Exit::Served);
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                count(Reason::PortRead);
                machine.ports.read(u64::from(port), data);
                return Ok(Exit::Served);
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                count(Reason::MmioWrite);
                machine.mmio.write(address, data);
                return Ok(Exit::Served);
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                count(Reason::MmioRead);
                machine.mmio.read(address, data);
                return Ok(Exit::Served);
            }
            Ok(VcpuExit::Intr) => {
                count(Reason::Signal);
                return Ok(Exit::Interrupted);
            }
            Ok(exit) => crash::Cause::from(exit),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    count(Reason::Signal);
                    signal::consume_kicks();
                    return Ok(Exit::Interrupted);
                }
                // The vCPU waits for its INIT, or KVM asks for another try.
                libc::EAGAIN => {
                    count(Reason::Retry);
                    return Ok(Exit::Interrupted);
                }
                libc::EFAULT => crash::Cause::MemoryFault,
                _ => {
                    let call = "KVM_RUN";
                    return Err(Err(RunError::Vcpu { vcpu: self.index, call, source: error }));
                }
            },
        };
        count(Reason::Other);
        let crash = crash::describe(self.fd, self.index, cause);
        Err(Ok(Outcome::Crashed(crash)))
    }
}
