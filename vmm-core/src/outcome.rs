use std::fmt;

use crate::host::HostKind;

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest wrote its exit code to the exit port.
    Exited(u8),
    /// The guest switched itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The host stopped it: [`VmHandle::stop`](crate::VmHandle::stop).
    Stopped,
    /// The guest did what its (virtual) hardware cannot go on from.
    Crashed(Crash),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(code) => write!(f, "the guest exited with code {code}"),
            Self::PowerOff => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest reset"),
            Self::Stopped => f.write_str("stopped by the host"),
            Self::Crashed(crash) => crash.fmt(f),
        }
    }
}

/// Where and why a guest crashed. [`Display`](fmt::Display) says it in words that a person can act on.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Crash {
    /// What KVM reported.
    pub reason: CrashReason,
    /// Index of the vCPU.
    pub vcpu: u8,
    /// Its instruction pointer, if KVM still tells.
    pub instruction_pointer: Option<u64>,
    /// The bytes of the instruction, where KVM gives them (failed emulation).
    pub instruction: Vec<u8>,
    /// What kind of KVM ran it.
    pub host: HostKind,
}

/// Why KVM could not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashReason {
    /// `KVM_EXIT_SHUTDOWN`: a triple fault.
    TripleFault,
    /// `KVM_EXIT_INTERNAL_ERROR` with suberror 1: KVM had to emulate an instruction and cannot.
    Emulation,
    /// `KVM_EXIT_INTERNAL_ERROR` with another suberror.
    InternalError {
        /// The `KVM_INTERNAL_ERROR_*` number.
        suberror: u32,
    },
    /// `KVM_EXIT_FAIL_ENTRY`: the processor refused the state of the vCPU.
    FailEntry {
        /// The processor's own number for it.
        hardware_reason: u64,
    },
    /// The guest uses memory that the host cannot provide (`EFAULT` or `KVM_EXIT_MEMORY_FAULT`).
    MemoryFault,
    /// An exit that this monitor does not know, by its `KVM_EXIT_*` number if there is one.
    UnknownExit {
        /// The number.
        number: Option<u32>,
    },
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pvm = self.host == HostKind::Pvm;
        match self.reason {
            CrashReason::TripleFault => f.write_str("the guest crashed with a triple fault")?,
            CrashReason::Emulation => {
                f.write_str("this host's KVM cannot run an instruction of the guest")?
            }
            CrashReason::InternalError { suberror } => {
                write!(f, "KVM gave up on the guest with internal error {suberror}")?;
            }
            CrashReason::FailEntry { hardware_reason } => write!(
                f,
                "the processor refused to enter the guest (hardware reason {hardware_reason:#x}): \
                 its control registers are inconsistent, or this kernel needs a newer processor"
            )?,
            CrashReason::MemoryFault => f.write_str(
                "the guest used memory that the host cannot provide: the host is out of memory, \
                 or a file behind guest memory was cut",
            )?,
            CrashReason::UnknownExit { number: Some(number) } => {
                write!(
                    f,
                    "KVM left the guest for a reason that this monitor does not know ({number})"
                )?;
            }
            CrashReason::UnknownExit { number: None } => {
                f.write_str("KVM left the guest for a reason that this monitor does not expect")?;
            }
        }
        write!(f, " (vCPU {}", self.vcpu)?;
        if let Some(address) = self.instruction_pointer {
            write!(f, ", at {address:#x}")?;
        }
        if !self.instruction.is_empty() {
            f.write_str(", instruction bytes")?;
            self.instruction.iter().try_for_each(|byte| write!(f, " {byte:02x}"))?;
        }
        f.write_str(")")?;
        match self.reason {
            CrashReason::Emulation | CrashReason::InternalError { .. } if pvm => f.write_str(
                ". This host's KVM is PVM: it has no hardware virtualization and emulates the guest's \
                 kernel, not every instruction of it; a triple fault shows up the same way. \
                 Stock kernels need a host with hardware virtualization",
            ),
            CrashReason::Emulation => f.write_str(
                ". KVM emulates an instruction that touches a device address or runs in real mode, \
                 and supports only the usual ones there",
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_on_pvm_says_that_the_host_is_the_limit() {
        let mut crash = Crash {
            reason: CrashReason::Emulation,
            vcpu: 1,
            instruction_pointer: Some(0xffff_ffff_8100_0000),
            instruction: vec![0x0f, 0xae, 0x27],
            host: HostKind::Pvm,
        };
        let text = crash.to_string();
        assert!(
            text.contains("(vCPU 1, at 0xffffffff81000000, instruction bytes 0f ae 27)"),
            "{text}"
        );
        assert!(text.contains("this host's KVM cannot run an instruction"), "{text}");
        assert!(text.contains("PVM"), "{text}");
        crash.host = HostKind::Hardware;
        assert!(!crash.to_string().contains("PVM"));
    }
}
