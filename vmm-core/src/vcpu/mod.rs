//! A vCPU and its thread.

mod crash;

use std::io;
use std::panic::{self, AssertUnwindSafe};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::control::Control;
use crate::machine::Machine;
use crate::sys::signal;
use crate::timeline::Milestone;
use crate::{Outcome, RunError};

/// A vCPU that is set up and has not run yet.
#[derive(Debug)]
pub(crate) struct Vcpu {
    index: u8,
    fd: VcpuFd,
}

impl Vcpu {
    pub(crate) fn new(index: u8, fd: VcpuFd) -> Self {
        Self { index, fd }
    }

    pub(crate) fn index(&self) -> u8 {
        self.index
    }

    /// Runs the guest on the calling thread until the machine ends, by this vCPU or otherwise. A panic,
    /// ours or that of a device, ends the machine and stays in this thread.
    pub(crate) fn run_caught(self, machine: &Machine, control: &Control) {
        let vcpu = self.index;
        // What a panic may leave half-done is this machine's own, and this machine ends.
        let run = AssertUnwindSafe(|| self.run(machine, control));
        if let Err(panic) = panic::catch_unwind(run) {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
            let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
            let message = text.unwrap_or_else(|| "no message".to_owned());
            control.end(Err(RunError::Panicked { vcpu, message }));
        }
    }

    fn run(mut self, machine: &Machine, control: &Control) {
        let index = self.index;
        let signals = |error: io::Error| RunError::Signals {
            vcpu: index,
            errno: error.raw_os_error().unwrap_or_default(),
        };
        let thread = match control.enter_vcpu_thread(index) {
            Ok(thread) => thread,
            Err(error) => return control.end(Err(signals(error))),
        };
        if let Err(source) = signal::unblock_kick_in_guest(&self.fd) {
            let call = "KVM_SET_SIGNAL_MASK";
            return control.end(Err(RunError::Vcpu { vcpu: index, call, source }));
        }
        if index == 0 {
            control.recorder().record(Milestone::GuestEntered);
        }
        while !control.is_ending() {
            if let Err(how) = self.run_once(machine) {
                control.end(how);
            }
        }
        drop(thread);
    }

    /// Enters the guest once and serves its exit. An `Err` is how the machine ends.
    fn run_once(&mut self, machine: &Machine) -> Result<(), Result<Outcome, RunError>> {
        let cause = match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => {
                machine.ports.write(u64::from(port), data);
                return Ok(());
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                machine.ports.read(u64::from(port), data);
                return Ok(());
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                machine.mmio.write(address, data);
                return Ok(());
            }
            Ok(VcpuExit::MmioRead(address, data)) => {
                machine.mmio.read(address, data);
                return Ok(());
            }
            Ok(VcpuExit::Intr) => return Ok(()),
            Ok(exit) => crash::Cause::from(exit),
            Err(error) => match error.errno() {
                libc::EINTR => {
                    signal::consume_kicks();
                    return Ok(());
                }
                // The vCPU waits for its INIT, or KVM asks for another try.
                libc::EAGAIN => return Ok(()),
                libc::EFAULT => crash::Cause::MemoryFault,
                _ => {
                    let call = "KVM_RUN";
                    return Err(Err(RunError::Vcpu { vcpu: self.index, call, source: error }));
                }
            },
        };
        let crash = crash::describe(&mut self.fd, self.index, cause);
        Err(Ok(Outcome::Crashed(crash)))
    }
}
