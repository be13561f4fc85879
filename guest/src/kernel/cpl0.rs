//! What needs CPL 0: the routines of `cpl0.s`, run through a gate; and the table of the handlers of
//! interrupts and exceptions.
//!
//! The gate is `int3`, which traps on every host. PVM cannot emulate `int N`, and runs `syscall` in
//! its own way.

use core::arch::asm;
use core::ptr::addr_of_mut;
use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicU32, AtomicU64};

use crate::{end, exit_code, uart};

pub(crate) const TIMER_VECTOR: usize = 0x20;
pub(crate) const UART_VECTOR: usize = 0x21;
pub(crate) const VIRTIO_VECTOR: usize = 0x22;
pub(crate) const SPURIOUS_VECTOR: usize = 0xff;
/// `int3` raises it.
const GATE_VECTOR: usize = 3;

/// How often the interrupts from [`TIMER_VECTOR`] on were taken.
#[unsafe(no_mangle)]
static INTERRUPTS: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];

/// Not 0 when the local APIC is in x2APIC mode: the handlers then acknowledge by MSR.
#[unsafe(no_mangle)]
pub(crate) static X2APIC: AtomicU32 = AtomicU32::new(0);

#[unsafe(no_mangle)]
static mut IDT: [[u64; 2]; 256] = [[0; 2]; 256];

unsafe extern "C" {
    fn cpl0_gate();
    fn cpl0_exceptions();
    fn cpl0_timer_interrupt();
    fn cpl0_uart_interrupt();
    fn cpl0_virtio_interrupt();
    fn cpl0_spurious_interrupt();
    fn cpl0_rdmsr();
    fn cpl0_wrmsr();
    fn cpl0_cpuid();
    fn cpl0_set_interrupts();
    fn cpl0_wait_for_interrupt();
    fn cpl0_halt();
    fn cpl0_loop();
    fn cpl0_crash();
    fn cpl0_triple_fault();
}

/// Fills the interrupt descriptor table, to which the CPUs already point.
pub(crate) fn set_up() {
    for vector in 0..32 {
        set_gate(vector, cpl0_exceptions as *const () as u64 + 16 * vector as u64, 0);
    }
    set_gate(TIMER_VECTOR, cpl0_timer_interrupt as *const () as u64, 0);
    set_gate(UART_VECTOR, cpl0_uart_interrupt as *const () as u64, 0);
    set_gate(VIRTIO_VECTOR, cpl0_virtio_interrupt as *const () as u64, 0);
    set_gate(SPURIOUS_VECTOR, cpl0_spurious_interrupt as *const () as u64, 0);
    set_gate(GATE_VECTOR, cpl0_gate as *const () as u64, 3);
}

/// Writes a descriptor of an interrupt gate: code segment 0x10, callable from `privilege`.
fn set_gate(vector: usize, handler: u64, privilege: u64) {
    let low = (handler & 0xffff)
        | 0x10 << 16
        | (0x8e00 | privilege << 13) << 32
        | (handler >> 16 & 0xffff) << 48;
    // SAFETY: only the boot CPU writes the table, while no other runs; `vector` is below 256.
    unsafe { addr_of_mut!(IDT[vector]).write_volatile([low, handler >> 32]) }
}

pub(crate) fn read_msr(msr: u32) -> u64 {
    // SAFETY: reads an MSR; one that does not exist raises an exception that is reported.
    unsafe { call(cpl0_rdmsr, u64::from(msr), 0, 0) }
}

/// # Safety
/// The value must leave the CPU as the rest of the guest expects it.
pub(crate) unsafe fn write_msr(msr: u32, value: u64) {
    // SAFETY: the caller vouches for the value.
    unsafe {
        call(cpl0_wrmsr, u64::from(msr), value, 0);
    }
}

/// EAX, EBX, ECX, EDX of a CPUID leaf, as CPL 0 sees it: on some hosts CPL 3 sees the host's.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut registers = [0; 4];
    // SAFETY: the routine writes the four registers.
    unsafe {
        call(cpl0_cpuid, u64::from(leaf), u64::from(subleaf), (&raw mut registers) as u64);
    }
    registers
}

/// Lets interrupts in, or keeps them out.
pub(crate) fn set_interrupts(on: bool) {
    // SAFETY: all vectors in use have handlers, which only count.
    unsafe {
        call(cpl0_set_interrupts, if on { 0x200 } else { 0 }, 0, 0);
    }
}

/// How often the interrupt with this vector was taken.
pub(crate) fn interrupts(vector: usize) -> u64 {
    INTERRUPTS.get(vector - TIMER_VECTOR).map_or(0, |count| count.load(SeqCst))
}

/// Halts this CPU until there is an interrupt, of any kind; not at all if the interrupt with this
/// vector was not taken exactly `seen` times.
pub(crate) fn wait_for_interrupt(vector: usize, seen: u64) {
    let Some(count) = INTERRUPTS.get(vector - TIMER_VECTOR) else { return };
    // SAFETY: the routine reads the count, and lets interrupts in while it halts.
    unsafe {
        call(cpl0_wait_for_interrupt, count.as_ptr() as u64, seen, 0);
    }
}

/// Halts this CPU for good, with interrupts off.
pub(crate) fn halt() -> ! {
    never_returns(cpl0_halt)
}

/// Runs `iterations` (at least 1) of a loop of two instructions at CPL 0.
pub(crate) fn count_down(iterations: u64) {
    // SAFETY: the routine changes one register.
    unsafe {
        call(cpl0_loop, iterations, 0, 0);
    }
}

/// Runs what an emulated CPL 0 cannot, or else faults threefold.
pub(crate) fn crash() -> ! {
    never_returns(cpl0_crash)
}

pub(crate) fn triple_fault() -> ! {
    never_returns(cpl0_triple_fault)
}

fn never_returns(routine: unsafe extern "C" fn()) -> ! {
    // SAFETY: it does not return, so there is nothing that it could spoil.
    unsafe {
        call(routine, 0, 0, 0);
    }
    loop {
        core::hint::spin_loop();
    }
}

/// # Safety
/// As the routine, which is one of `cpl0.s`, demands.
unsafe fn call(routine: unsafe extern "C" fn(), first: u64, second: u64, third: u64) -> u64 {
    let mut result = routine as *const () as u64;
    // SAFETY: the gate runs the routine on a stack of its own; it keeps to the C ABI.
    unsafe {
        asm!("int3", inout("rax") result, in("rdi") first, in("rsi") second, in("rdx") third,
             clobber_abi("C"));
    }
    result
}

/// Where an exception ends up, on a stack of its own.
#[unsafe(no_mangle)]
extern "C" fn report_exception(vector: u64, error: u64, rip: u64, cr2: u64) -> ! {
    uart::text(b"sparkler guest: exception ");
    uart::number(vector, 10);
    for (name, value) in [(&b" error 0x"[..], error), (b" rip 0x", rip), (b" cr2 0x", cr2)] {
        uart::text(name);
        uart::number(value, 16);
    }
    uart::text(b"\n");
    end::failure(exit_code::EXCEPTION)
}
