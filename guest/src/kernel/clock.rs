//! Time, by the time-stamp counter.

use core::arch::x86_64::_rdtsc;
use core::ptr::{addr_of, addr_of_mut, read_volatile};

use crate::cmdline::Cmdline;
use crate::cpl0;

/// Assumed for deadlines where nothing tells the true frequency: none that we meet is much higher.
const FAST_KHZ: u64 = 4_000_000;

const CPUID_SIGNATURE: u32 = 0x4000_0000;
const CPUID_FEATURES: u32 = 0x4000_0001;
const FEATURE_CLOCKSOURCE2: u32 = 1 << 3;
const MSR_SYSTEM_TIME: u32 = 0x4b56_4d01;

/// `pvclock_vcpu_time_info` of KVM (Documentation/virt/kvm/x86/msr.rst).
#[repr(C, align(32))]
struct PvClock {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
    pad2: [u8; 2],
}

static mut PVCLOCK: PvClock = PvClock {
    version: 0,
    pad: 0,
    tsc_timestamp: 0,
    system_time: 0,
    tsc_to_system_mul: 0,
    tsc_shift: 0,
    flags: 0,
    pad2: [0; 2],
};

/// The time-stamp counter.
pub(crate) fn now() -> u64 {
    // SAFETY: nothing forbids `rdtsc` at CPL 3 here.
    unsafe { _rdtsc() }
}

/// A time in the future.
pub(crate) struct Deadline(u64);

impl Deadline {
    /// At least `milliseconds` from now.
    pub(crate) fn after(milliseconds: u64) -> Self {
        Self(now().saturating_add(milliseconds * FAST_KHZ))
    }

    /// Waits until `done`, or until the deadline; returns whether it is done.
    pub(crate) fn wait_until(&self, mut done: impl FnMut() -> bool) -> bool {
        while !done() {
            if now() > self.0 {
                return done();
            }
            core::hint::spin_loop();
        }
        true
    }
}

/// The frequency of the time-stamp counter in kHz: as the command line says (`tsc_khz=`), or else
/// KVM's clock; 0 where neither does.
pub(crate) fn tsc_khz(cmdline: &Cmdline) -> Result<u64, u8> {
    Ok(match cmdline.number(b"tsc_khz")? {
        Some(khz) => khz,
        None => kvm_tsc_khz().unwrap_or(0),
    })
}

fn kvm_tsc_khz() -> Option<u64> {
    let [_, ebx, ecx, edx] = cpl0::cpuid(CPUID_SIGNATURE, 0);
    let signature = [ebx, ecx, edx].map(u32::to_le_bytes);
    if signature != [*b"KVMK", *b"VMKV", *b"M\0\0\0"]
        || cpl0::cpuid(CPUID_FEATURES, 0)[0] & FEATURE_CLOCKSOURCE2 == 0
    {
        return None;
    }
    let clock = addr_of_mut!(PVCLOCK);
    // SAFETY: KVM writes to the structure, which nobody else does; it is switched off again.
    let (multiplier, shift) = unsafe {
        cpl0::write_msr(MSR_SYSTEM_TIME, clock as u64 | 1);
        let values = (
            read_volatile(addr_of!((*clock).tsc_to_system_mul)),
            read_volatile(addr_of!((*clock).tsc_shift)),
        );
        cpl0::write_msr(MSR_SYSTEM_TIME, 0);
        values
    };
    // nanoseconds = (ticks << shift) * multiplier >> 32
    let khz = (1_000_000u64 << 32).checked_div(u64::from(multiplier))?;
    Some(if shift < 0 { khz << -shift } else { khz >> shift })
}
