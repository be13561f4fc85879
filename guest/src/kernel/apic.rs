//! The local APIC, by MMIO or, in x2APIC mode, by MSR; and the IOAPIC.

use core::sync::atomic::Ordering::Relaxed;

use crate::exit_code::NO_APIC;
use crate::port::out8;
use crate::{TestResult, cpl0, paging};

const CPUID_APIC: u32 = 1 << 9;
const MSR_APIC_BASE: u32 = 0x1b;
const BASE_X2APIC: u64 = 1 << 10;
const BASE_ENABLED: u64 = 1 << 11;
const MSR_X2APIC: u32 = 0x800;
const LOCAL_APIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

const ID: u32 = 0x20;
const VERSION: u32 = 0x30;
const SPURIOUS: u32 = 0xf0;
const COMMAND: u32 = 0x300;
const COMMAND_HIGH: u32 = 0x310;
const TIMER: u32 = 0x320;
const TIMER_COUNT: u32 = 0x380;
const TIMER_DIVIDE: u32 = 0x3e0;

const SOFTWARE_ENABLED: u32 = 1 << 8;
const DELIVERY_PENDING: u32 = 1 << 12;
const TIMER_PERIODIC: u32 = 1 << 17;
const MASKED: u32 = 1 << 16;
const DIVIDE_BY_1: u32 = 0xb;

const PIC_MASTER_MASK: u16 = 0x21;
const PIC_SLAVE_MASK: u16 = 0xa1;

/// Interrupt commands to all CPUs but this one.
pub(crate) const INIT_OTHERS: u32 = 0xc_4500;
pub(crate) const STARTUP_OTHERS: u32 = 0xc_4600;

/// The local APIC of this CPU.
pub(crate) struct Apic {
    x2apic: bool,
}

impl Apic {
    pub(crate) fn open() -> Result<Self, u8> {
        if cpl0::cpuid(1, 0)[3] & CPUID_APIC == 0 {
            return Err(NO_APIC);
        }
        let base = cpl0::read_msr(MSR_APIC_BASE);
        if base & BASE_ENABLED == 0 {
            return Err(NO_APIC);
        }
        let x2apic = base & BASE_X2APIC != 0;
        cpl0::X2APIC.store(u32::from(x2apic), Relaxed);
        if !x2apic {
            paging::device(LOCAL_APIC, 4096);
        }
        let apic = Self { x2apic };
        if apic.read(VERSION) == u32::MAX {
            return Err(NO_APIC);
        }
        apic.write(SPURIOUS, SOFTWARE_ENABLED | cpl0::SPURIOUS_VECTOR as u32);
        Ok(apic)
    }

    /// The APIC id of this CPU.
    pub(crate) fn id(&self) -> u32 {
        if self.x2apic { self.read(ID) } else { self.read(ID) >> 24 }
    }

    /// Sends an interrupt command that names its targets itself.
    pub(crate) fn command(&self, command: u32) -> TestResult {
        if self.x2apic {
            self.write(COMMAND, command);
            return Ok(());
        }
        self.write(COMMAND_HIGH, 0);
        self.write(COMMAND, command);
        for _ in 0..100_000 {
            if self.read(COMMAND) & DELIVERY_PENDING == 0 {
                return Ok(());
            }
        }
        Err(NO_APIC)
    }

    /// Lets the timer interrupt every `count` ticks of its clock.
    pub(crate) fn start_timer(&self, count: u32) {
        self.write(TIMER_DIVIDE, DIVIDE_BY_1);
        self.write(TIMER, TIMER_PERIODIC | cpl0::TIMER_VECTOR as u32);
        self.write(TIMER_COUNT, count);
    }

    pub(crate) fn stop_timer(&self) {
        self.write(TIMER, MASKED);
        self.write(TIMER_COUNT, 0);
    }

    fn read(&self, register: u32) -> u32 {
        if self.x2apic {
            cpl0::read_msr(MSR_X2APIC + (register >> 4)) as u32
        } else {
            let address = LOCAL_APIC + u64::from(register);
            // SAFETY: a register of the local APIC, mapped by `open`.
            unsafe { (address as *const u32).read_volatile() }
        }
    }

    fn write(&self, register: u32, value: u32) {
        if self.x2apic {
            // SAFETY: what the guest writes does not change how its code runs.
            unsafe { cpl0::write_msr(MSR_X2APIC + (register >> 4), u64::from(value)) }
        } else {
            let address = LOCAL_APIC + u64::from(register);
            // SAFETY: a register of the local APIC, mapped by `open`.
            unsafe { (address as *mut u32).write_volatile(value) }
        }
    }
}

/// Keeps the old interrupt controllers quiet, if there are any.
pub(crate) fn mask_pics() {
    out8(PIC_MASTER_MASK, 0xff);
    out8(PIC_SLAVE_MASK, 0xff);
}

/// Routes an edge-triggered interrupt line to a CPU.
pub(crate) fn route(line: u32, vector: usize, apic_id: u32) {
    let registers = paging::device(IOAPIC, 32).cast::<u32>();
    for (index, value) in [(0x11, apic_id << 24), (0x10, vector as u32)] {
        // SAFETY: the IOAPIC's index register, and 16 bytes behind it its data register.
        unsafe {
            registers.write_volatile(index + 2 * line);
            registers.add(4).write_volatile(value);
        }
    }
}
