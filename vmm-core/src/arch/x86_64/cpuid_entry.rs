use std::fmt;

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// One answer of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct CpuidEntry {
    /// What the guest has in EAX when it asks.
    pub leaf: u32,
    /// What it must have in ECX, where that matters.
    pub subleaf: Option<u32>,
    /// The answer in EAX.
    pub eax: u32,
    /// The answer in EBX.
    pub ebx: u32,
    /// The answer in ECX.
    pub ecx: u32,
    /// The answer in EDX.
    pub edx: u32,
}

impl CpuidEntry {
    /// Whether it is the answer to this question.
    #[must_use]
    pub fn is(&self, leaf: u32, subleaf: u32) -> bool {
        self.leaf == leaf && self.subleaf.is_none_or(|own| own == subleaf)
    }
}

impl fmt::Display for CpuidEntry {
    /// As `cpuid -r` prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, eax, ebx, ecx, edx, .. } = self;
        let subleaf = self.subleaf.unwrap_or(0);
        write!(f, "{leaf:#010x} {subleaf:#04x}: ")?;
        write!(f, "eax={eax:#010x} ebx={ebx:#010x} ecx={ecx:#010x} edx={edx:#010x}")
    }
}

/// From what KVM has.
pub(super) fn from_kvm(cpuid: &CpuId) -> Vec<CpuidEntry> {
    let entry = |&kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, .. }: &_| {
        let has_index = flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
        CpuidEntry { leaf: function, subleaf: has_index.then_some(index), eax, ebx, ecx, edx }
    };
    cpuid.as_slice().iter().map(entry).collect()
}

/// To what KVM takes, if it is not too much.
pub(super) fn to_kvm(entries: &[CpuidEntry]) -> Option<CpuId> {
    let entry = |&CpuidEntry { leaf, subleaf, eax, ebx, ecx, edx }: &_| kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf.unwrap_or(0),
        flags: subleaf.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    CpuId::from_entries(&entries.iter().map(entry).collect::<Vec<_>>()).ok()
}
