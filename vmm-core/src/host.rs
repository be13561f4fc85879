//! What this host can do: is there a KVM, may it be used, of which kind is it, does it have all that a
//! machine needs.

use std::fmt;
use std::io;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use crate::VmBuilder;
use crate::error::KvmError;

/// Which KVM this host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HostKind {
    /// KVM on hardware virtualization (AMD SVM, Intel VMX), maybe nested: runs everything.
    Hardware,
    /// PVM: KVM without hardware virtualization. The API is complete, but guest kernel code is emulated
    /// by the host, slowly, and not every instruction; stock kernels do not boot.
    Pvm,
    /// No KVM.
    None,
}

impl HostKind {
    /// Looks at the modules of the host's kernel; needs no permission.
    #[must_use]
    pub fn detect() -> Self {
        let module = |name| Path::new("/sys/module").join(name).exists();
        if module("kvm_pvm") {
            Self::Pvm
        } else if module("kvm_amd") || module("kvm_intel") || Path::new("/dev/kvm").exists() {
            Self::Hardware
        } else {
            Self::None
        }
    }
}

impl fmt::Display for HostKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware virtualization",
            Self::Pvm => "PVM (no hardware virtualization)",
            Self::None => "none",
        })
    }
}

/// The findings on this host.
///
/// ```
/// let report = sparkler::host::HostReport::probe();
/// match &report.kvm {
///     Ok(kvm) => println!("up to {} vCPUs, missing: {:?}", kvm.max_vcpus, kvm.missing()),
///     Err(error) => println!("{error}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct HostReport {
    /// Which KVM.
    pub kind: HostKind,
    /// What it can do, or why it cannot be used.
    pub kvm: Result<KvmReport, KvmError>,
}

/// What a usable KVM can do.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct KvmReport {
    /// `KVM_GET_API_VERSION`, always 12 on a kernel of this century.
    pub api_version: i32,
    /// The most vCPUs that a machine can have on this host, [`VmBuilder::MAX_VCPUS`] or fewer.
    pub max_vcpus: u32,
    /// The most memory slots that a machine can have.
    pub max_memory_slots: u32,
    /// Every capability that was asked for.
    pub capabilities: Vec<Capability>,
}

/// One capability of KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Capability {
    /// Its name in the KVM API.
    pub name: &'static str,
    /// Whether a machine needs it; without the others, something is slower or missing.
    pub needed: bool,
    /// Whether this host has it.
    pub present: bool,
}

impl HostReport {
    /// Asks this host. Opens `/dev/kvm` and creates nothing.
    #[must_use]
    pub fn probe() -> Self {
        Self { kind: HostKind::detect(), kvm: open().map(|kvm| KvmReport::new(&kvm)) }
    }
}

impl KvmReport {
    /// The needed capabilities that this host lacks.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        let missing = self.capabilities.iter().filter(|cap| cap.needed && !cap.present);
        missing.map(|cap| cap.name).collect()
    }

    fn new(kvm: &Kvm) -> Self {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let capability = |&(name, cap, needed): &(&'static str, Cap, bool)| Capability {
            name,
            needed,
            present: kvm.check_extension(cap),
        };
        Self {
            api_version: kvm.get_api_version(),
            max_vcpus: max_vcpus(kvm),
            max_memory_slots: number(kvm.get_nr_memslots()),
            capabilities: CAPABILITIES.iter().map(capability).collect(),
        }
    }
}

/// Name, capability, and whether a machine cannot do without.
const CAPABILITIES: [(&str, Cap, bool); 14] = [
    ("KVM_CAP_IRQCHIP", Cap::Irqchip, true),
    ("KVM_CAP_USER_MEMORY", Cap::UserMemory, true),
    ("KVM_CAP_SET_TSS_ADDR", Cap::SetTssAddr, true),
    ("KVM_CAP_EXT_CPUID", Cap::ExtCpuid, true),
    ("KVM_CAP_SPLIT_IRQCHIP", Cap::SplitIrqchip, true),
    ("KVM_CAP_SIGNAL_MSI", Cap::SignalMsi, true),
    ("KVM_CAP_IRQFD", Cap::Irqfd, true),
    ("KVM_CAP_IOEVENTFD", Cap::Ioeventfd, true),
    ("KVM_CAP_IMMEDIATE_EXIT", Cap::ImmediateExit, true),
    ("KVM_CAP_PIT2", Cap::Pit2, false),
    ("KVM_CAP_TSC_DEADLINE_TIMER", Cap::TscDeadlineTimer, false),
    ("KVM_CAP_ADJUST_CLOCK", Cap::AdjustClock, false),
    ("KVM_CAP_X86_MSR_FILTER", Cap::X86MsrFilter, false),
    ("KVM_CAP_GET_TSC_KHZ", Cap::GetTscKhz, false),
];

/// Opens `/dev/kvm` and makes sure that it has what every machine needs.
pub(crate) fn open_fit() -> Result<Kvm, KvmError> {
    let kvm = open()?;
    let lacks = |&&(_, cap, needed): &&(&str, Cap, bool)| needed && !kvm.check_extension(cap);
    match CAPABILITIES.iter().find(lacks) {
        Some((name, ..)) => Err(KvmError::Capability(name)),
        None => Ok(kvm),
    }
}

/// The most vCPUs that a machine can have here.
pub(crate) fn max_vcpus(kvm: &Kvm) -> u32 {
    u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX).min(VmBuilder::MAX_VCPUS)
}

fn open() -> Result<Kvm, KvmError> {
    const STABLE_API: i32 = 12;
    let kvm = Kvm::new().map_err(|error| match io::Error::from(error) {
        error if error.kind() == io::ErrorKind::NotFound => KvmError::Missing,
        error if error.kind() == io::ErrorKind::PermissionDenied => KvmError::Permission,
        error => KvmError::Open(error),
    })?;
    match kvm.get_api_version() {
        STABLE_API => Ok(kvm),
        version => Err(KvmError::ApiVersion(version)),
    }
}
