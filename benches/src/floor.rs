//! The floor: the least that a program can do to run a guest under KVM. It creates a machine with one
//! memory slot and one vCPU, puts a kernel into it, and runs it to its first boot mark or to
//! its exit code. No monitor can be faster on the same host; so it is what ours is measured against.

use std::error::Error;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_regs, kvm_segment, kvm_sregs,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

const EXIT_PORT: u16 = 0xf4;
const MARK_PORT: u16 = 0xf8;
const UART_DATA: u16 = 0x3f8;
const UART_LINE_STATUS: u16 = 0x3fd;
/// Nothing received, ready to send.
const UART_IDLE: u8 = 0x60;

const GDT: usize = 0x500;
const BOOT_PARAMS: usize = 0x7000;
const PAGE_MAP: usize = 0x9000;
const CMDLINE: usize = 0x20000;
const LOW_MEMORY_END: usize = 0x9fc00;
const HIGH_MEMORY: usize = 0x10_0000;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Config<'a> {
    /// The kernel: an ELF file that Linux's 64-bit boot protocol can enter.
    pub elf: &'a [u8],
    /// Its command line.
    pub cmdline: &'a str,
    /// Bytes of memory, below 3 GiB.
    pub memory: usize,
    /// Whether to create the interrupt controllers in the kernel.
    pub irqchip: bool,
    /// Whether to go on after the first boot mark, until the guest writes its exit code.
    pub until_exit: bool,
}

/// What it took.
#[derive(Debug)]
pub struct Report {
    /// The steps, in order, and how long each took.
    pub steps: Vec<(&'static str, Duration)>,
    /// What the guest wrote to the exit port, if it ran that far.
    pub exit_code: Option<u8>,
    /// What the guest wrote to its UART.
    pub console: Vec<u8>,
}

impl Report {
    /// How long it took from the beginning until the end of the step `name`.
    pub fn until(&self, name: &str) -> Option<Duration> {
        let last = self.steps.iter().position(|(step, _)| *step == name)?;
        Some(self.steps.iter().take(last + 1).map(|(_, duration)| *duration).sum())
    }
}

/// The names of the steps of [`run`], in order; `irqchip` and `exit` only when asked for.
pub const STEPS: [&str; 12] = [
    "open",
    "vm",
    "memory",
    "load",
    "slot",
    "irqchip",
    "vcpu",
    "cpuid",
    "registers",
    "first mark",
    "exit",
    "teardown",
];

/// Which interrupt controllers are KVM's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Irqchip {
    /// None.
    None,
    /// The local APICs only: the least with which a stock kernel could do.
    LocalApics,
    /// A PC's: local APICs, I/O APIC and both PICs.
    Full,
}

/// Runs the machine once.
///
/// # Errors
/// Whatever KVM says; an ELF file that is cut or does not fit; a guest that stops otherwise.
pub fn run(config: &Config<'_>) -> Result<Report, Box<dyn Error>> {
    run_with(config, if config.irqchip { Irqchip::Full } else { Irqchip::None })
}

/// As [`run`], with a word of its own on the interrupt controllers.
///
/// # Errors
/// As of [`run`].
pub fn run_with(config: &Config<'_>, irqchip: Irqchip) -> Result<Report, Box<dyn Error>> {
    let mut clock = Clock { steps: Vec::with_capacity(STEPS.len()), last: Instant::now() };

    let kvm = Kvm::new()?;
    clock.step("open");
    let vm = kvm.create_vm()?;
    clock.step("vm");
    let mut memory = Memory::new(config.memory)?;
    clock.step("memory");
    let entry = load(&mut memory, config).ok_or("the kernel or its command line does not fit")?;
    clock.step("load");
    let slot = kvm_userspace_memory_region {
        memory_size: config.memory.try_into()?,
        userspace_addr: memory.address.addr().try_into()?,
        ..Default::default()
    };
    // SAFETY: the memory is mapped, and is unmapped after the machine is gone.
    unsafe { vm.set_user_memory_region(slot)? };
    clock.step("slot");
    match irqchip {
        Irqchip::None => {}
        Irqchip::LocalApics => {
            vm.enable_cap(&kvm_enable_cap { cap: KVM_CAP_SPLIT_IRQCHIP, ..Default::default() })?;
        }
        Irqchip::Full => vm.create_irq_chip()?,
    }
    if irqchip != Irqchip::None {
        clock.step("irqchip");
    }
    let mut vcpu = vm.create_vcpu(0)?;
    clock.step("vcpu");
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?)?;
    clock.step("cpuid");
    set_registers(&vcpu, entry)?;
    clock.step("registers");
    let (exit_code, console) = run_vcpu(&mut vcpu, config.until_exit, &mut clock)?;

    drop(vcpu);
    drop(vm);
    drop(memory);
    clock.step("teardown");
    Ok(Report { steps: clock.steps, exit_code, console })
}

type Output = (Option<u8>, Vec<u8>);

fn run_vcpu(
    vcpu: &mut VcpuFd,
    until_exit: bool,
    clock: &mut Clock,
) -> Result<Output, Box<dyn Error>> {
    let mut console = Vec::new();
    let mut marked = false;
    loop {
        match vcpu.run()? {
            VcpuExit::IoOut(MARK_PORT, _) if !marked => {
                clock.step("first mark");
                marked = true;
                if !until_exit {
                    return Ok((None, console));
                }
            }
            VcpuExit::IoOut(EXIT_PORT, data) => {
                let code = data.first().copied();
                clock.step("exit");
                return Ok((code, console));
            }
            VcpuExit::IoOut(UART_DATA, data) => console.extend_from_slice(data),
            VcpuExit::IoIn(UART_LINE_STATUS, data) => data.fill(UART_IDLE),
            VcpuExit::IoIn(_, data) | VcpuExit::MmioRead(_, data) => data.fill(0xff),
            VcpuExit::IoOut(..) | VcpuExit::MmioWrite(..) => {}
            other => return Err(format!("the guest stopped: {other:?}").into()),
        }
    }
}

/// Puts the kernel, its command line, `boot_params`, page tables and a GDT into memory; returns the
/// entry point.
fn load(memory: &mut Memory, config: &Config<'_>) -> Option<u64> {
    let entry = load_elf(memory, config.elf)?;
    memory.write(CMDLINE, config.cmdline.as_bytes())?;
    memory.write(BOOT_PARAMS + 0x228, &u32::try_from(CMDLINE).ok()?.to_le_bytes())?;
    memory.write(BOOT_PARAMS + 0x1e8, &[3])?;
    let e820 = [
        (0, LOW_MEMORY_END, 1u32),
        (LOW_MEMORY_END, HIGH_MEMORY, 2),
        (HIGH_MEMORY, config.memory, 1),
    ];
    for (index, (start, end, kind)) in e820.into_iter().enumerate() {
        let entry = BOOT_PARAMS + 0x2d0 + 20 * index;
        memory.write(entry, &u64::try_from(start).ok()?.to_le_bytes())?;
        memory.write(entry + 8, &u64::try_from(end.checked_sub(start)?).ok()?.to_le_bytes())?;
        memory.write(entry + 16, &kind.to_le_bytes())?;
    }
    // The first GiB, one to one.
    memory.write(PAGE_MAP, &(0xa000u64 | 3).to_le_bytes())?;
    memory.write(0xa000, &(0xb000u64 | 3).to_le_bytes())?;
    for index in 0..512u16 {
        let page = u64::from(index) << 21 | 0x83;
        memory.write(0xb000 + 8 * usize::from(index), &page.to_le_bytes())?;
    }
    for (index, descriptor) in
        [0u64, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff].into_iter().enumerate()
    {
        memory.write(GDT + 8 * index, &descriptor.to_le_bytes())?;
    }
    Some(entry)
}

fn load_elf(memory: &mut Memory, elf: &[u8]) -> Option<u64> {
    let number = |at: usize| Some(u64::from_le_bytes(elf.get(at..at + 8)?.try_into().ok()?));
    let short = |at: usize| Some(u16::from_le_bytes(elf.get(at..at + 2)?.try_into().ok()?));
    let headers = usize::try_from(number(32)?).ok()?;
    for index in 0..short(56)? {
        let header = headers + 56 * usize::from(index);
        if short(header)? != 1 {
            continue; // not PT_LOAD
        }
        let offset = usize::try_from(number(header + 8)?).ok()?;
        let size = usize::try_from(number(header + 32)?).ok()?;
        let address = usize::try_from(number(header + 24)?).ok()?;
        memory.write(address, elf.get(offset..offset.checked_add(size)?)?)?;
    }
    number(24)
}

/// Long mode with paging, as Linux's 64-bit boot protocol demands.
fn set_registers(vcpu: &VcpuFd, entry: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs: kvm_sregs = vcpu.get_sregs()?;
    let code = kvm_segment {
        limit: u32::MAX,
        selector: 0x10,
        type_: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Default::default()
    };
    let data = kvm_segment { selector: 0x18, type_: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    (sregs.ds, sregs.es, sregs.ss) = (data, data, data);
    (sregs.fs, sregs.gs) = (data, data);
    sregs.gdt.base = GDT as u64;
    sregs.gdt.limit = 4 * 8 - 1;
    sregs.cr3 = PAGE_MAP as u64;
    sregs.cr4 |= 1 << 5; // PAE
    sregs.cr0 |= 1 << 31 | 1; // PG, PE
    sregs.efer |= 1 << 10 | 1 << 8; // LMA, LME
    vcpu.set_sregs(&sregs)?;
    vcpu.set_regs(&kvm_regs {
        rip: entry,
        rsi: BOOT_PARAMS as u64,
        rflags: 2,
        ..Default::default()
    })
}

struct Clock {
    steps: Vec<(&'static str, Duration)>,
    last: Instant,
}

impl Clock {
    fn step(&mut self, name: &'static str) {
        let now = Instant::now();
        self.steps.push((name, now - self.last));
        self.last = now;
    }
}

/// Anonymous memory for the guest.
struct Memory {
    address: *mut u8,
    size: usize,
}

impl Memory {
    fn new(size: usize) -> std::io::Result<Self> {
        // SAFETY: a new mapping touches nothing that exists.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self { address: address.cast(), size })
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Option<()> {
        if at.checked_add(bytes.len())? > self.size {
            return None;
        }
        // SAFETY: the range was just checked, and no vCPU runs yet.
        unsafe { self.address.add(at).copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Some(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: it is ours, and the machine that used it is gone.
        unsafe { libc::munmap(self.address.cast(), self.size) };
    }
}
