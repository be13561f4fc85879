//! The baseline templates, as tables. A leaf that is not in them does not exist, and neither does a bit:
//! what a later processor adds stays hidden until it is written here.
//!
//! Bits are those of Intel's manual, volume 2A, "CPUID", and AMD's manual, volume 3, appendix E. What
//! differs from vCPU to vCPU is filled in later (`cpuid.rs`).

use self::Register::{AddressBits, Host, Is, Of};

/// What a register of a leaf says.
#[derive(Debug, Clone, Copy)]
pub(super) enum Register {
    /// This, whatever the host has.
    Is(u32),
    /// These features, as far as the host has them.
    Of(u32),
    /// What the host says.
    Host,
    /// These widths of addresses, or the host's if they are less.
    AddressBits(u32),
}

/// Leaf, subleaf where it matters, and EAX, EBX, ECX, EDX.
type Leaf = (u32, Option<u32>, [Register; 4]);

pub(super) struct Baseline {
    pub(super) leaves: &'static [Leaf],
}

const fn bits(list: &[u32]) -> u32 {
    let mut value = 0;
    let mut rest = list;
    while let [bit, more @ ..] = rest {
        value |= 1 << *bit;
        rest = more;
    }
    value
}

const NONE: Register = Is(0);
/// The highest leaf: later ones tell the frequencies of this host, its caches, its tracing, its AMX.
const LAST_LEAF: u32 = 0xd;

/// SSE3, PCLMULQDQ, SSSE3, FMA, CX16, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, AES, XSAVE, AVX, F16C, RDRAND.
const FEATURES_1_ECX: u32 = bits(&[0, 1, 9, 12, 13, 19, 20, 21, 22, 23, 25, 26, 28, 29, 30]);
/// All from FPU to SSE2 but for the processor serial number, thermal control, debug store.
const FEATURES_1_EDX: u32 = 0x078b_fbff;
/// FSGSBASE, TSC_ADJUST, BMI1, AVX2, SMEP, BMI2, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB.
const FEATURES_7_EBX: u32 = bits(&[0, 1, 3, 5, 7, 8, 18, 19, 20, 23, 24]);
/// XSAVEOPT, XSAVEC, XGETBV with ECX = 1.
const FEATURES_XSAVE: u32 = bits(&[0, 1, 2]);
/// Of `KVM_CPUID_FEATURES`: CLOCKSOURCE, NOP_IO_DELAY, CLOCKSOURCE2, STEAL_TIME, PV_EOI, PV_UNHALT,
/// PV_TLB_FLUSH, PV_SEND_IPI, CLOCKSOURCE_STABLE: what every kernel since 4.19 has.
const FEATURES_KVM: u32 = bits(&[0, 1, 3, 5, 6, 7, 9, 11, 24]);

// Both vendors' in the same way.
const XSAVE: Leaf = (0xd, Some(0), [Of(7), Is(0x340), Is(0x340), NONE]);
const XSAVE_FEATURES: Leaf = (0xd, Some(1), [Of(FEATURES_XSAVE), NONE, NONE, NONE]);
const XSAVE_AVX: Leaf = (0xd, Some(2), [Is(0x100), Is(0x240), NONE, NONE]);
/// The timer of the local APIC does not stop.
const POWER: Leaf = (6, None, [Is(1 << 2), NONE, NONE, NONE]);
const KVM: Leaf = (0x4000_0000, None, [Is(0x4000_0001), Host, Host, Host]);
const KVM_FEATURES: Leaf = (0x4000_0001, None, [Of(FEATURES_KVM), NONE, NONE, NONE]);

/// 16 of the 48 bytes of the processor's name.
const fn name(text: &[u8; 48], part: usize) -> [Register; 4] {
    let mut registers = [NONE; 4];
    let mut index = 0;
    while index < 4 {
        let at = part * 16 + index * 4;
        // Evaluated when this is compiled, where a mistake would show.
        #[allow(clippy::indexing_slicing)]
        {
            registers[index] =
                Is(u32::from_le_bytes([text[at], text[at + 1], text[at + 2], text[at + 3]]));
        }
        index += 1;
    }
    registers
}

const INTEL_NAME: &[u8; 48] = b"Intel Xeon (Sparkler baseline)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
const AMD_NAME: &[u8; 48] = b"AMD EPYC (Sparkler baseline)\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// Skylake-SP, Cascade Lake, Ice Lake, Sapphire Rapids and later, without what some of them lack or have
/// switched off: AVX-512, MPX, TSX, protection keys, SGX. It has no `IA32_ARCH_CAPABILITIES`: so a guest takes
/// itself to need every mitigation, as it may on the oldest of them.
pub(super) const INTEL: Baseline = Baseline {
    leaves: &[
        (0, None, [Is(LAST_LEAF), Host, Host, Host]),
        // Family 6, model 0x55, stepping 4.
        (
            1,
            None,
            [
                Is(0x0005_0654),
                Host,
                Of(FEATURES_1_ECX | bits(&[17])),
                Of(FEATURES_1_EDX | bits(&[27])),
            ],
        ),
        // Caches are told by leaf 4.
        (2, None, [Is(0x00ff_ff01), NONE, NONE, NONE]),
        // Data and instructions 32 KiB of 8 ways, 1 MiB of 16, 16 MiB of 16; in lines of 64 bytes.
        (4, Some(0), [Is(0x0000_0121), Is(0x01c0_003f), Is(0x3f), NONE]),
        (4, Some(1), [Is(0x0000_0122), Is(0x01c0_003f), Is(0x3f), NONE]),
        (4, Some(2), [Is(0x0000_0143), Is(0x03c0_003f), Is(0x3ff), NONE]),
        (4, Some(3), [Is(0x0000_0163), Is(0x03c0_003f), Is(0x3fff), NONE]),
        (4, Some(4), [NONE; 4]),
        POWER,
        // ERMS, INVPCID as well. EDX: MD_CLEAR, SPEC_CTRL, STIBP, FLUSH_L1D, SSBD.
        (
            7,
            Some(0),
            [NONE, Of(FEATURES_7_EBX | bits(&[9, 10])), NONE, Of(bits(&[10, 26, 27, 28, 31]))],
        ),
        XSAVE,
        XSAVE_FEATURES,
        XSAVE_AVX,
        KVM,
        KVM_FEATURES,
        (0x8000_0000, None, [Is(0x8000_0008), NONE, NONE, NONE]),
        // LAHF, LZCNT, PREFETCHW; SYSCALL, NX, pages of 1 GiB, RDTSCP, long mode.
        (0x8000_0001, None, [NONE, NONE, Of(bits(&[0, 5, 8])), Of(bits(&[11, 20, 26, 27, 29]))]),
        (0x8000_0002, None, name(INTEL_NAME, 0)),
        (0x8000_0003, None, name(INTEL_NAME, 1)),
        (0x8000_0004, None, name(INTEL_NAME, 2)),
        (0x8000_0006, None, [NONE, NONE, Is(0x0100_8040), NONE]),
        // 46 bits physical, 48 linear.
        (0x8000_0008, None, [AddressBits(0x302e), NONE, NONE, NONE]),
    ],
};

/// Zen 2 and later, without what some of them lack: PCID and INVPCID, protection keys, VAES, AVX-512,
/// shadow stacks.
pub(super) const AMD: Baseline = Baseline {
    leaves: &[
        (0, None, [Is(LAST_LEAF), Host, Host, Host]),
        // Family 0x17, model 0x31, stepping 0.
        (1, None, [Is(0x0083_0f10), Host, Of(FEATURES_1_ECX), Of(FEATURES_1_EDX)]),
        POWER,
        // SHA as well; UMIP, RDPID.
        (7, Some(0), [NONE, Of(FEATURES_7_EBX | bits(&[29])), Of(bits(&[2, 22])), NONE]),
        XSAVE,
        XSAVE_FEATURES,
        XSAVE_AVX,
        KVM,
        KVM_FEATURES,
        (0x8000_0000, None, [Is(0x8000_001e), Host, Host, Host]),
        // LAHF, CR8 in 32 bits, LZCNT, SSE4A, misaligned SSE, PREFETCHW, topology leaves. EDX: as leaf 1 with
        // SYSCALL, NX, MMX extensions, fast FXSAVE, pages of 1 GiB, RDTSCP, long mode.
        (
            0x8000_0001,
            None,
            [Is(0x0083_0f10), NONE, Of(bits(&[0, 4, 5, 6, 7, 8, 22])), Of(0x2fd3_fbff)],
        ),
        (0x8000_0002, None, name(AMD_NAME, 0)),
        (0x8000_0003, None, name(AMD_NAME, 1)),
        (0x8000_0004, None, name(AMD_NAME, 2)),
        // TLBs and caches of Zen 2: 32 KiB of 8 ways each, 512 KiB of 8, 16 MiB of 16.
        (0x8000_0005, None, [Is(0xff40_ff40), Is(0xff40_ff40), Is(0x2008_0140), Is(0x2008_0140)]),
        (0x8000_0006, None, [Is(0x4800_6400), Is(0x6800_6400), Is(0x0200_6140), Is(0x0080_9140)]),
        (0x8000_0007, None, [NONE; 4]),
        // CLZERO, XSAVEERPTR, IBPB, IBRS, STIBP, SSBD. 48 bits physical and linear.
        (0x8000_0008, None, [AddressBits(0x3030), Of(bits(&[0, 2, 12, 14, 15, 24])), NONE, NONE]),
        (0x8000_001a, None, [Is(4), NONE, NONE, NONE]),
        (0x8000_001d, Some(0), [Is(0x0000_0121), Is(0x01c0_003f), Is(0x3f), NONE]),
        (0x8000_001d, Some(1), [Is(0x0000_0122), Is(0x01c0_003f), Is(0x3f), NONE]),
        (0x8000_001d, Some(2), [Is(0x0000_0143), Is(0x01c0_003f), Is(0x3ff), Is(2)]),
        (0x8000_001d, Some(3), [Is(0x0000_0163), Is(0x03c0_003f), Is(0x3fff), Is(1)]),
        (0x8000_001d, Some(4), [NONE; 4]),
        (0x8000_001e, None, [NONE; 4]),
    ],
};
