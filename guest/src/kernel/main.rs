//! The built-in guest: a kernel of some KiB. It starts in `entry.s`, and all that is written in
//! Rust runs at CPL 3. `README.md` says what it understands and how it is made.

#![no_std]
#![no_main]
#![warn(unreachable_pub, unused_qualifications)]
#![warn(clippy::undocumented_unsafe_blocks)]

mod absent;
mod apic;
mod bootinfo;
mod clock;
mod cmdline;
mod console;
mod cpl0;
mod end;
#[allow(unreachable_pub, reason = "public in the library, which shares the file")]
#[path = "../exit_code.rs"]
mod exit_code;
mod interrupts;
mod intrinsics;
mod look;
mod memory;
mod paging;
mod port;
mod smp;
mod speed;
mod uart;
mod virtio;

use bootinfo::BootInfo;
use cmdline::Cmdline;

core::arch::global_asm!(include_str!("entry.s"));
core::arch::global_asm!(include_str!("cpl0.s"));

/// What a test returns: nothing, or the exit code that says what was wrong.
type TestResult = Result<(), u8>;

/// Where `entry.s` goes at CPL 3: `protocol` is 0 for Linux's boot protocol and 1 for PVH, and
/// `info` is the address of `boot_params` or `hvm_start_info`.
#[unsafe(no_mangle)]
extern "C" fn body(protocol: u64, info: u64) -> ! {
    port::mark(2);
    cpl0::set_up();
    let boot = BootInfo::read(protocol, info);
    let cmdline = Cmdline::new(boot.cmdline());
    match run(&boot, &cmdline) {
        Ok(()) => end::as_asked(&cmdline),
        Err(code) => end::failure(code),
    }
}

fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    if !cmdline.has(b"quiet") {
        uart::text(b"sparkler guest: booted by ");
        uart::text(boot.protocol());
        uart::text(b"\n");
    }
    for value in cmdline.values(b"mark") {
        port::mark(cmdline::number(value)? as u8);
    }
    match cmdline.value(b"test").unwrap_or(b"hello") {
        b"hello" => memory::total(boot).map(|_| ()),
        b"memory" => memory::run(boot, cmdline),
        b"vcpus" => smp::vcpus(cmdline),
        b"interrupts" => interrupts::run(cmdline),
        b"button" => interrupts::button(cmdline),
        b"echo" => console::echo(),
        b"sink" => console::sink(cmdline),
        b"print" => console::print(cmdline),
        b"ports" => absent::ports(),
        b"mmio" => absent::mmio(),
        b"virtio" => virtio::list(cmdline),
        b"rng" => virtio::rng(boot, cmdline),
        b"disk" => virtio::verify(boot, cmdline),
        b"diskinfo" => virtio::info(boot, cmdline),
        b"disksum" => virtio::sum(boot, cmdline),
        b"diskfill" => virtio::fill(boot, cmdline),
        b"iops" => virtio::iops(boot, cmdline),
        b"net" => virtio::net(boot, cmdline),
        b"netinfo" => virtio::net_info(boot, cmdline),
        b"hostile" => virtio::hostile(boot, cmdline),
        b"shared" => look::shared(cmdline),
        b"read" => look::read(cmdline),
        b"cpuid" => look::cpuid(cmdline),
        b"msr" => look::msr(cmdline),
        b"speed" => speed::run(cmdline),
        b"hang" => end::hang(),
        b"spin" => smp::spin(cmdline),
        b"halt" => cpl0::halt(),
        b"crash" => cpl0::crash(),
        b"triple" => cpl0::triple_fault(),
        _ => Err(exit_code::BAD_COMMAND_LINE),
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    uart::text(b"sparkler guest: panic\n");
    end::failure(exit_code::PANIC)
}
