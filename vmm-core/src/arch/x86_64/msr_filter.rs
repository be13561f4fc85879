//! Model-specific registers that a guest cannot use, because they tell of the host or of its other guests.
//!
//! KVM emulates few of them today. But which it does depends on its version and its parameters
//! (`ignore_msrs`, `pt_mode`, the performance counters), and a guest that reads one gets a general
//! protection fault here, always: as on a processor that does not have it.

use kvm_ioctls::{Cap, Kvm, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};

use crate::error::KvmError;

/// Model-specific registers that a guest cannot use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeniedMsrs {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
    /// What they would tell.
    pub why: &'static str,
}

const COUNTERS: &str = "performance counters: what runs on the core and its caches, guest and host";
const FREQUENCY: &str = "the core's real frequency: how busy its neighbours are, how warm it is";
const TEMPERATURE: &str = "temperatures: how busy the host is, and a channel between guests";
const ENERGY: &str = "energy used: it tells keys apart that other guests compute with";
const IDENTITY: &str = "the processor's own number: which host this is";
const BRANCHES: &str = "the last branches taken: where other code of the host lies";
const TRACES: &str = "processor trace: where other code of the host lies";
const SAMPLES: &str = "samples of instructions and the addresses that they touch";
const PREFETCHERS: &str = "switches of the core, which its next guest finds as they were left";

const fn deny(first: u32, last: u32, why: &'static str) -> DeniedMsrs {
    DeniedMsrs { first, last, why }
}

/// What the filter denies (see [`VmBuilder::msr_filter`](crate::VmBuilder::msr_filter)), in ascending order:
/// Intel's registers (volume 4 of its manual), then AMD's (volume 2, and the references of its families).
pub const DENIED_MSRS: &[DeniedMsrs] = &[
    deny(0x4e, 0x4f, IDENTITY),                // PPIN_CTL, PPIN
    deny(0xc1, 0xc8, COUNTERS),                // PMC0 to PMC7
    deny(0xe7, 0xe8, FREQUENCY),               // MPERF, APERF
    deny(0x186, 0x18d, COUNTERS),              // PERFEVTSEL0 to PERFEVTSEL7
    deny(0x19c, 0x19c, TEMPERATURE),           // THERM_STATUS
    deny(0x1a2, 0x1a2, TEMPERATURE),           // TEMPERATURE_TARGET
    deny(0x1a4, 0x1a4, PREFETCHERS),           // MISC_FEATURE_CONTROL
    deny(0x1b1, 0x1b1, TEMPERATURE),           // PACKAGE_THERM_STATUS
    deny(0x1c8, 0x1c9, BRANCHES),              // LBR_SELECT, LASTBRANCH_TOS
    deny(0x309, 0x30c, COUNTERS),              // FIXED_CTR0 to FIXED_CTR3
    deny(0x38d, 0x392, COUNTERS),              // FIXED_CTR_CTRL, PERF_GLOBAL_*
    deny(0x3f1, 0x3f7, SAMPLES),               // PEBS_ENABLE to PEBS_FRONTEND
    deny(0x4c1, 0x4c8, COUNTERS),              // PMC0 to PMC7, written in full width
    deny(0x560, 0x561, TRACES),                // RTIT_OUTPUT_*
    deny(0x570, 0x587, TRACES),                // RTIT_CTL to RTIT_ADDR3_B
    deny(0x600, 0x600, SAMPLES),               // DS_AREA
    deny(0x606, 0x606, ENERGY),                // RAPL_POWER_UNIT
    deny(0x610, 0x642, ENERGY),                // package, DRAM, cores, uncore
    deny(0x64d, 0x64d, ENERGY),                // PLATFORM_ENERGY_COUNTER
    deny(0x680, 0x6df, BRANCHES),              // LASTBRANCH_*
    deny(0xdc0, 0xddf, BRANCHES),              // LASTBRANCH_INFO_*
    deny(0xc000_00e7, 0xc000_00e9, FREQUENCY), // MPERF, APERF, IRPerfCount: to be read only
    deny(0xc000_0300, 0xc000_0303, COUNTERS),  // PerfCntrGlobal*
    deny(0xc001_0000, 0xc001_0007, COUNTERS),  // PERF_LEGACY_CTL0 to PERF_LEGACY_CTR3
    deny(0xc001_0061, 0xc001_006b, FREQUENCY), // P-states
    deny(0xc001_0200, 0xc001_020b, COUNTERS),  // of a core
    deny(0xc001_0230, 0xc001_023b, COUNTERS),  // of the L3 cache
    deny(0xc001_0240, 0xc001_0247, COUNTERS),  // of a node
    deny(0xc001_0293, 0xc001_0293, FREQUENCY), // HwPstateStatus
    deny(0xc001_0299, 0xc001_029b, ENERGY),    // RAPL_PWR_UNIT, CORE_ENERGY_STAT, PKG_ENERGY_STAT
    deny(0xc001_02f0, 0xc001_02f1, IDENTITY),  // PPIN_CTL, PPIN
    deny(0xc001_1030, 0xc001_103d, SAMPLES),   // instruction-based sampling
];

/// What KVM is given: registers from `base` on, and a bit for each of them: 1 if the guest may use it.
struct Range<const BYTES: usize> {
    base: u32,
    allowed: [u8; BYTES],
}

// Together they hold all that is denied. Made when this is compiled.
static LOW: Range<0x200> = Range::new(0);
static AMD_GLOBAL: Range<0x80> = Range::new(0xc000_0000);
static AMD_LEGACY: Range<0x80> = Range::new(0xc001_0000);
static AMD_SAMPLES: Range<0x20> = Range::new(0xc001_1000);

impl<const BYTES: usize> Range<BYTES> {
    #[allow(clippy::indexing_slicing, clippy::cast_possible_truncation)] // A mistake would not compile.
    const fn new(base: u32) -> Self {
        let mut allowed = [u8::MAX; BYTES];
        let mut range = 0;
        while range < DENIED_MSRS.len() {
            let mut msr = DENIED_MSRS[range].first;
            while msr <= DENIED_MSRS[range].last {
                if msr >= base && ((msr - base) as usize) < BYTES * 8 {
                    allowed[(msr - base) as usize / 8] &= !(1 << ((msr - base) % 8));
                }
                msr += 1;
            }
            range += 1;
        }
        Self { base, allowed }
    }

    fn to_kvm(&self) -> MsrFilterRange<'_> {
        MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base: self.base,
            msr_count: u32::try_from(BYTES).unwrap_or(0).saturating_mul(8),
            bitmap: &self.allowed,
        }
    }
}

/// Denies them to the guest, where KVM can. To be called before there is a vCPU.
pub(crate) fn deny_msrs(kvm: &Kvm, vm: &VmFd) -> Result<(), KvmError> {
    if !kvm.check_extension(Cap::X86MsrFilter) {
        return Ok(());
    }
    vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &ranges())
        .map_err(KvmError::ioctl("KVM_X86_SET_MSR_FILTER"))
}

fn ranges() -> [MsrFilterRange<'static>; 4] {
    [LOW.to_kvm(), AMD_GLOBAL.to_kvm(), AMD_LEGACY.to_kvm(), AMD_SAMPLES.to_kvm()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_denied_is_in_the_ranges_and_nothing_else() {
        let mut denied = Vec::new();
        for MsrFilterRange { base, msr_count, bitmap, .. } in ranges() {
            assert_eq!(bitmap.len(), msr_count as usize / 8);
            let bit = |index: u32| bitmap[index as usize / 8] >> (index % 8) & 1;
            denied
                .extend((0..msr_count).filter(|&index| bit(index) == 0).map(|index| base + index));
        }
        let expected: Vec<_> =
            DENIED_MSRS.iter().flat_map(|range| range.first..=range.last).collect();
        assert_eq!(denied, expected, "in order, without overlaps");
        // What every kernel needs: TSC, APIC base, MTRRs, PAT, EFER, STAR, KVM's own.
        for msr in [0x10, 0x1b, 0x8b, 0xfe, 0x1a0, 0x200, 0x277, 0x2ff, 0xc000_0080, 0xc000_0081] {
            assert!(!denied.contains(&msr), "{msr:#x}");
        }
    }
}
