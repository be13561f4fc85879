//! `test=vcpus` and `test=spin`: the other CPUs.

use core::sync::atomic::Ordering::SeqCst;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use core::{mem, ptr};

use crate::apic::{Apic, INIT_OTHERS, STARTUP_OTHERS};
use crate::clock::Deadline;
use crate::cmdline::Cmdline;
use crate::exit_code::{VCPUS_EXTRA, VCPUS_MISSING, VCPUS_SAME_ID, VCPUS_WORK};
use crate::{TestResult, cpl0, end, paging, uart};

/// As many as `entry.s` has stacks for.
const MAX_CPUS: usize = 64;
/// The page for the trampoline: usable memory in every memory map that we know.
const TRAMPOLINE_PAGE: u32 = 8;
const STEPS_OF_WORK: u32 = 1_000_000;
/// For all CPUs to come up; many may share one of the host's.
const START_MILLISECONDS: u64 = 10_000;

/// Counted by `entry.s` as CPUs arrive; this one was there already.
#[unsafe(no_mangle)]
static CPUS_STARTED: AtomicU32 = AtomicU32::new(1);
static CPUS_DONE: AtomicU32 = AtomicU32::new(1);
static CPUS_SPINNING: AtomicU32 = AtomicU32::new(1);
/// What they do: a `fn(usize)`, given their index.
static JOB: AtomicPtr<()> = AtomicPtr::new(ptr::null_mut());
static IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static RESULTS: [AtomicU64; MAX_CPUS] = [const { AtomicU64::new(0) }; MAX_CPUS];

unsafe extern "C" {
    static trampoline: u8;
    static trampoline_end: u8;
}

/// `test=vcpus`: all CPUs come up, have ids of their own, and calculate.
pub(crate) fn vcpus(cmdline: &Cmdline) -> TestResult {
    let expected = expected(cmdline)?;
    start_others(report)?;
    report(0);
    let deadline = Deadline::after(START_MILLISECONDS);
    let started = deadline.wait_until(|| CPUS_STARTED.load(SeqCst) >= expected);
    let done = started && deadline.wait_until(|| CPUS_DONE.load(SeqCst) >= expected);
    // Any too many have had as long to start as the others; a little more, for certainty.
    Deadline::after(5).wait_until(|| CPUS_STARTED.load(SeqCst) > expected);

    let count = CPUS_STARTED.load(SeqCst);
    uart::key_value(b"vcpus", u64::from(count));
    if count > expected {
        return Err(VCPUS_EXTRA);
    }
    if !started {
        return Err(VCPUS_MISSING);
    }
    if !done {
        return Err(VCPUS_WORK);
    }
    check(count as usize)
}

/// `test=spin`: all CPUs spin forever at CPL 3, interrupts off.
pub(crate) fn spin(cmdline: &Cmdline) -> TestResult {
    let expected = expected(cmdline)?;
    start(expected, |_| {
        CPUS_SPINNING.fetch_add(1, SeqCst);
        end::hang()
    })?;
    let deadline = Deadline::after(START_MILLISECONDS);
    if !deadline.wait_until(|| CPUS_SPINNING.load(SeqCst) >= expected) {
        return Err(VCPUS_MISSING);
    }
    uart::text(b"spinning\n");
    end::hang()
}

/// Has all other CPUs do `job`, with their index (from 1); of `expected` CPUs none may be missing.
pub(crate) fn start(expected: u32, job: fn(usize)) -> TestResult {
    start_others(job)?;
    let all = || CPUS_STARTED.load(SeqCst) >= expected;
    if Deadline::after(START_MILLISECONDS).wait_until(all) { Ok(()) } else { Err(VCPUS_MISSING) }
}

fn expected(cmdline: &Cmdline) -> Result<u32, u8> {
    Ok(cmdline.number(b"expect_vcpus")?.unwrap_or(1).min(MAX_CPUS as u64) as u32)
}

/// The universal start-up algorithm of Intel's manual (MP initialization), for all at once.
fn start_others(job: fn(usize)) -> TestResult {
    JOB.store(job as *mut (), SeqCst);
    let apic = Apic::open()?;
    let page = u64::from(TRAMPOLINE_PAGE) << 12;
    let from = &raw const trampoline;
    let length = &raw const trampoline_end as usize - from as usize;
    // SAFETY: the boot information was copied; nobody else uses the page.
    unsafe { paging::memory(page, 4096).copy_from_nonoverlapping(from, length) };
    apic.command(INIT_OTHERS)?;
    Deadline::after(1).wait_until(|| false);
    for _ in 0..2 {
        apic.command(STARTUP_OTHERS | TRAMPOLINE_PAGE)?;
        Deadline::after(1).wait_until(|| false);
    }
    Ok(())
}

/// Where `entry.s` goes at CPL 3 on each further CPU.
#[unsafe(no_mangle)]
extern "C" fn further_cpu(index: usize) -> ! {
    // SAFETY: `start_others` stored a `fn(usize)` before this CPU was started.
    let job = unsafe { mem::transmute::<*mut (), fn(usize)>(JOB.load(SeqCst)) };
    job(index);
    CPUS_DONE.fetch_add(1, SeqCst);
    cpl0::halt()
}

/// Says who this CPU is and what it calculates.
fn report(index: usize) {
    if let (Some(id), Some(result)) = (IDS.get(index), RESULTS.get(index)) {
        id.store(apic_id(), SeqCst);
        result.store(work(), SeqCst);
    }
}

fn check(count: usize) -> TestResult {
    let ids = IDS.get(..count).unwrap_or(&IDS);
    uart::text(b"apic_ids=");
    for (index, id) in ids.iter().enumerate() {
        if index > 0 {
            uart::text(b",");
        }
        uart::number(u64::from(id.load(SeqCst)), 10);
    }
    uart::text(b"\n");
    for (index, id) in ids.iter().enumerate() {
        if ids.iter().take(index).any(|other| other.load(SeqCst) == id.load(SeqCst)) {
            return Err(VCPUS_SAME_ID);
        }
    }
    let expected = RESULTS[0].load(SeqCst);
    if RESULTS.iter().take(count).any(|result| result.load(SeqCst) != expected) {
        return Err(VCPUS_WORK);
    }
    Ok(())
}

/// The APIC id from CPUID: of the topology leaf where there is one, since it has all 32 bits.
fn apic_id() -> u32 {
    if cpl0::cpuid(0, 0)[0] >= 0xb {
        let [_, ebx, _, edx] = cpl0::cpuid(0xb, 0);
        if ebx != 0 {
            return edx;
        }
    }
    cpl0::cpuid(1, 0)[1] >> 24
}

/// Steps of xorshift64.
fn work() -> u64 {
    let mut x = core::hint::black_box(0x9e37_79b9_7f4a_7c15u64);
    for _ in 0..STEPS_OF_WORK {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
    }
    x
}
