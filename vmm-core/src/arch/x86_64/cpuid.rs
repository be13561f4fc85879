//! What CPUID says to a guest: what KVM supports, with the topology and identity of the vCPU filled in.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The place of a vCPU among its siblings: one package, one core each, one thread a core.
#[derive(Debug, Clone, Copy)]
pub(super) struct Topology {
    /// Its index, which is its APIC id too.
    pub(super) index: u8,
    /// How many vCPUs there are.
    pub(super) count: u8,
}

impl Topology {
    /// Bits of the APIC id that tell the cores of the package apart.
    fn core_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    /// The highest core number, as the leaves encode "count minus one".
    fn last_core(self) -> u32 {
        u32::from(self.count).saturating_sub(1)
    }
}

/// The width of physical addresses (leaf 0x8000_0008), 36 bits if KVM does not say.
pub(super) fn physical_address_bits(supported: &CpuId) -> u32 {
    let leaf = supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008);
    leaf.map_or(36, |entry| entry.eax & 0xff)
}

/// The CPUID of one vCPU; `None` if KVM's list leaves no room for the few leaves that are added.
pub(super) fn for_vcpu(
    supported: &CpuId,
    topology: Topology,
    tsc_deadline_timer: bool,
) -> Option<CpuId> {
    let apic_id = u32::from(topology.index);
    let amd = is_amd(supported);
    let mut entries: Vec<kvm_cpuid_entry2> = supported
        .as_slice()
        .iter()
        // Made anew below: KVM passes through what the host's processor says of itself.
        .filter(|entry| !matches!(entry.function, 0xb | 0x1f))
        .copied()
        .collect();
    for entry in &mut entries {
        match entry.function {
            0x1 => features(entry, topology, tsc_deadline_timer),
            0x4 => intel_caches(entry, topology),
            // No performance counters: without them nothing leaks, and no guest needs them to boot. Intel's
            // leaf, then AMD's.
            0xa | 0x8000_0022 => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            0x8000_0001 if amd => amd_features(entry, topology),
            0x8000_0008 if amd => entry.ecx = topology.last_core() | (topology.core_bits() << 12),
            0x8000_001d => amd_caches(entry, topology),
            0x8000_001e => {
                // Extended APIC id; core id, one thread; node 0 of one.
                (entry.eax, entry.ebx, entry.ecx) = (apic_id, apic_id, 0);
            }
            _ => {}
        }
    }
    entries.extend(extended_topology(0xb, topology));
    CpuId::from_entries(&entries).ok()
}

/// Without its registers, which the filter denies, a guest cannot use Intel PT, and must not try.
pub(super) fn hide_processor_trace(cpuid: &mut CpuId) {
    const INTEL_PT: u32 = 25;
    for entry in cpuid.as_mut_slice() {
        match (entry.function, entry.index) {
            (0x7, 0) => set_bit(&mut entry.ebx, INTEL_PT, false),
            (0x14, _) => (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0),
            _ => {}
        }
    }
}

/// AMD's leaves are reserved on other processors, but for Hygon's, which are AMD's.
fn is_amd(supported: &CpuId) -> bool {
    let vendor = supported.as_slice().iter().find(|entry| entry.function == 0);
    let start = vendor.map(|entry| entry.ebx.to_le_bytes());
    start.is_some_and(|start| start == *b"Auth" || start == *b"Hygo")
}

/// Leaf 0x8000_0001 (AMD).
fn amd_features(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    const CMP_LEGACY: u32 = 1;
    const PERFORMANCE_COUNTERS: [u32; 3] = [23, 24, 28]; // of a core, of a node, of the L3 cache
    set_bit(&mut entry.ecx, CMP_LEGACY, topology.count > 1);
    for bit in PERFORMANCE_COUNTERS {
        set_bit(&mut entry.ecx, bit, false);
    }
}

/// Leaf 1: identity, and the features that depend on the machine.
fn features(entry: &mut kvm_cpuid_entry2, topology: Topology, tsc_deadline_timer: bool) {
    const HYPERVISOR: u32 = 31;
    const TSC_DEADLINE: u32 = 24;
    const HTT: u32 = 28;
    const CLFLUSH_8_QUADWORDS: u32 = 8 << 8;
    entry.ebx = (u32::from(topology.index) << 24)
        | (u32::from(topology.count) << 16)
        | CLFLUSH_8_QUADWORDS
        | (entry.ebx & 0xff);
    set_bit(&mut entry.ecx, HYPERVISOR, true);
    set_bit(&mut entry.ecx, TSC_DEADLINE, tsc_deadline_timer);
    set_bit(&mut entry.edx, HTT, topology.count > 1);
}

/// Leaf 4 (Intel): L1 and L2 belong to a core, L3 to the package.
fn intel_caches(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let level = (entry.eax >> 5) & 0b111;
    if level == 0 {
        return;
    }
    let package = (1u32 << topology.core_bits()).saturating_sub(1);
    let sharing = if level >= 3 { package } else { 0 };
    entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (package.min(0x3f) << 26);
}

/// Leaf 0x8000_001d (AMD): the same.
fn amd_caches(entry: &mut kvm_cpuid_entry2, topology: Topology) {
    let level = (entry.eax >> 5) & 0b111;
    let sharing = if level >= 3 { topology.last_core() } else { 0 };
    entry.eax = (entry.eax & !(0xfff << 14)) | (sharing << 14);
}

/// Leaf 0xb: a level of threads (one a core), a level of cores, and the end.
fn extended_topology(function: u32, topology: Topology) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |index, shift, count, kind| kvm_cpuid_entry2 {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind,
        edx: u32::from(topology.index),
        ..Default::default()
    };
    let count = u32::from(topology.count);
    [level(0, 0, 1, THREADS), level(1, topology.core_bits(), count, CORES), level(2, 0, 0, 0)]
}

fn set_bit(register: &mut u32, bit: u32, on: bool) {
    if on {
        *register |= 1 << bit;
    } else {
        *register &= !(1 << bit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supported() -> CpuId {
        let entry = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        CpuId::from_entries(&[
            entry(0x0, 0, 0x1f, u32::from_le_bytes(*b"Auth"), 0, 0),
            entry(0x1, 0, 0x12345, 0xaabb_ccdd, 0, 0),
            entry(0x4, 0, 0xfc00_4121, 0, 0, 0),
            entry(0x4, 3, 0xfc00_4163, 0, 0, 0),
            entry(0xb, 0, 7, 7, 7, 7),
            entry(0x1f, 0, 7, 7, 7, 7),
            entry(0x8000_0008, 0, 48, 0, 0x7007, 0),
            entry(0x8000_001d, 3, 0x3fff_c163, 0, 0, 0),
            entry(0x8000_001e, 0, 99, 99, 99, 0),
        ])
        .unwrap()
    }

    fn leaf(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        let mut found =
            cpuid.as_slice().iter().filter(|e| (e.function, e.index) == (function, index));
        let entry = *found.next().unwrap();
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        entry
    }

    #[test]
    fn each_vcpu_has_an_apic_id_of_its_own_in_every_leaf_that_tells_it() {
        for count in [1, 2, 3, 8, 64] {
            for index in 0..count {
                let cpuid = for_vcpu(&supported(), Topology { index, count }, true).unwrap();
                let id = u32::from(index);
                assert_eq!(leaf(&cpuid, 1, 0).ebx >> 24, id);
                assert_eq!((leaf(&cpuid, 1, 0).ebx >> 16) & 0xff, u32::from(count));
                assert_eq!(leaf(&cpuid, 0xb, 0).edx, id);
                assert_eq!(leaf(&cpuid, 0xb, 1).edx, id);
                assert_eq!(leaf(&cpuid, 0x8000_001e, 0).eax, id);
                assert_eq!(id >> leaf(&cpuid, 0xb, 1).eax, 0, "one package");
            }
        }
    }

    #[test]
    fn topology_leaves_agree_on_the_number_of_cores() {
        let cpuid = for_vcpu(&supported(), Topology { index: 0, count: 6 }, false).unwrap();
        assert_eq!(leaf(&cpuid, 0xb, 0).ebx, 1);
        assert_eq!(leaf(&cpuid, 0xb, 1).ebx, 6);
        assert_eq!(leaf(&cpuid, 0xb, 1).eax, 3);
        assert_eq!(leaf(&cpuid, 0x8000_0008, 0).ecx, 5 | (3 << 12));
        assert_eq!((leaf(&cpuid, 4, 0).eax >> 14) & 0xfff, 0, "L1 is a core's own");
        assert_eq!((leaf(&cpuid, 4, 3).eax >> 14) & 0xfff, 7, "L3 is shared");
        assert_eq!((leaf(&cpuid, 0x8000_001d, 3).eax >> 14) & 0xfff, 5);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x1f));
    }

    #[test]
    fn processor_trace_is_not_there() {
        let entry = |function, index| {
            let (eax, ebx) = (1, u32::MAX);
            kvm_cpuid_entry2 { function, index, eax, ebx, ..Default::default() }
        };
        let all = [entry(0x7, 0), entry(0x7, 1), entry(0x14, 0), entry(0x14, 1)];
        let mut cpuid = CpuId::from_entries(&all).unwrap();
        hide_processor_trace(&mut cpuid);
        assert_eq!(leaf(&cpuid, 7, 0).ebx, !(1 << 25));
        assert_eq!(leaf(&cpuid, 7, 1), all[1]);
        assert_eq!((leaf(&cpuid, 0x14, 0).eax, leaf(&cpuid, 0x14, 0).ebx), (0, 0));
        assert_eq!(leaf(&cpuid, 0x14, 1).ebx, 0);
    }

    #[test]
    fn hypervisor_bit_is_set_and_the_deadline_timer_follows_the_host() {
        for on in [false, true] {
            let cpuid = for_vcpu(&supported(), Topology { index: 0, count: 1 }, on).unwrap();
            let features = leaf(&cpuid, 1, 0);
            assert_eq!(features.ecx >> 31, 1);
            assert_eq!((features.ecx >> 24) & 1, u32::from(on));
            assert_eq!((features.edx >> 28) & 1, 0, "one vCPU has no siblings");
        }
        assert_eq!(physical_address_bits(&supported()), 48);
    }
}
