//! What the guest writes to the exit port when a test fails. `code=N` chooses what it writes when
//! all went well.

/// All went well (unless the command line has `code=N`).
pub const SUCCESS: u8 = 0;

/// `test=memory`: the usable memory is more than `expect_memory=`, or more than 1 MiB less.
pub const MEMORY_SIZE: u8 = 0x10;
/// `test=memory`: a page did not keep what was written to it, or two pages are the same memory.
pub const MEMORY_CONTENT: u8 = 0x11;
/// The boot information has no memory map, or no usable memory in it.
pub const NO_MEMORY_MAP: u8 = 0x12;

/// `test=vcpus`: fewer vCPUs than `expect_vcpus=` came up in time.
pub const VCPUS_MISSING: u8 = 0x20;
/// `test=vcpus`: more vCPUs than `expect_vcpus=` came up.
pub const VCPUS_EXTRA: u8 = 0x21;
/// `test=vcpus`: two vCPUs have the same APIC id.
pub const VCPUS_SAME_ID: u8 = 0x22;
/// `test=vcpus`: a vCPU miscalculated, or did not finish its work in time.
pub const VCPUS_WORK: u8 = 0x23;

/// There is no local APIC, or it is switched off.
pub const NO_APIC: u8 = 0x30;
/// `test=interrupts`: the interrupts of the local APIC's timer did not arrive in time.
pub const NO_TIMER_INTERRUPT: u8 = 0x31;
/// `test=interrupts`: an interrupt of the UART (GSI 4) did not arrive in time.
pub const NO_UART_INTERRUPT: u8 = 0x32;
/// `test=interrupts`: the UART in loopback mode did not give back the byte written to it.
pub const UART_LOOPBACK: u8 = 0x33;

/// `test=ports`: an absent port read something else than all ones.
pub const PORT_VALUE: u8 = 0x40;
/// `test=mmio`: an absent address read something else than all ones.
pub const MMIO_VALUE: u8 = 0x41;

/// `test=echo`, `test=sink`: there is no UART to read from.
pub const NO_UART: u8 = 0x50;

/// A word of the command line that the guest knows has a value that it cannot use.
pub const BAD_COMMAND_LINE: u8 = 0x70;
/// The CPU raised an exception that no test asked for; the console says which.
pub const EXCEPTION: u8 = 0x7e;
/// The guest found a defect of its own.
pub const PANIC: u8 = 0x7f;
