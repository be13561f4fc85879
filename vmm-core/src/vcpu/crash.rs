//! From an exit that a guest cannot go on from to a [`Crash`].

use kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;
use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::host::HostKind;
use crate::{Crash, CrashReason};

/// What KVM said, without borrowing from the vCPU.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cause {
    Shutdown,
    InternalError,
    FailEntry { hardware_reason: u64 },
    MemoryFault,
    Unknown { number: Option<u32> },
}

impl From<VcpuExit<'_>> for Cause {
    fn from(exit: VcpuExit<'_>) -> Self {
        match exit {
            VcpuExit::Shutdown => Self::Shutdown,
            VcpuExit::InternalError => Self::InternalError,
            VcpuExit::FailEntry(hardware_reason, _cpu) => Self::FailEntry { hardware_reason },
            VcpuExit::MemoryFault { .. } => Self::MemoryFault,
            VcpuExit::Unsupported(number) => Self::Unknown { number: Some(number) },
            _ => Self::Unknown { number: None },
        }
    }
}

/// Puts together what can still be learned of the vCPU right after it left the guest.
pub(super) fn describe(fd: &mut VcpuFd, vcpu: u8, cause: Cause) -> Crash {
    let (reason, instruction) = match cause {
        Cause::Shutdown => (CrashReason::TripleFault, Vec::new()),
        Cause::InternalError => internal_error(fd),
        Cause::FailEntry { hardware_reason } => {
            (CrashReason::FailEntry { hardware_reason }, Vec::new())
        }
        Cause::MemoryFault => (CrashReason::MemoryFault, Vec::new()),
        Cause::Unknown { number } => {
            // Of a known number that we do not expect, the page shared with KVM still tells which.
            let number = number.or_else(|| Some(fd.get_kvm_run().exit_reason));
            (CrashReason::UnknownExit { number }, Vec::new())
        }
    };
    Crash {
        reason,
        vcpu,
        instruction_pointer: fd.get_regs().ok().map(|regs| regs.rip),
        instruction,
        host: HostKind::detect(),
    }
}

fn internal_error(fd: &mut VcpuFd) -> (CrashReason, Vec<u8>) {
    /// `KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES`
    const INSTRUCTION_BYTES: u64 = 1;
    let run = fd.get_kvm_run();
    // SAFETY: every bit pattern is valid for the integers in this member of the union, and the page
    // shared with KVM is initialized.
    let failure = unsafe { run.__bindgen_anon_1.emulation_failure };
    if failure.suberror != KVM_INTERNAL_ERROR_EMULATION {
        return (CrashReason::InternalError { suberror: failure.suberror }, Vec::new());
    }
    // `ndata` counts the 64-bit words that KVM filled in: the flags, then two with the instruction.
    let has_bytes = failure.ndata >= 3 && failure.flags & INSTRUCTION_BYTES != 0;
    // SAFETY: as above: plain integers.
    let bytes = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
    let length = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
    let instruction = bytes.insn_bytes.get(..length).filter(|_| has_bytes).unwrap_or_default();
    (CrashReason::Emulation, instruction.to_vec())
}
