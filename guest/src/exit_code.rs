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
/// `test=shared`: what was written to read-only memory is there.
pub const SHARED_CHANGED: u8 = 0x42;

/// `test=echo`, `test=sink`: there is no UART to read from.
pub const NO_UART: u8 = 0x50;

/// There is no virtio device of the kind and number that the test wants.
pub const VIRTIO_MISSING: u8 = 0x60;
/// The device refused a choice among the features that it offers.
pub const VIRTIO_FEATURES: u8 = 0x61;
/// The device lacks a queue that the test wants, or offers it with an impossible size.
pub const VIRTIO_QUEUE: u8 = 0x62;
/// A reset of the device did not come to an end in time.
pub const VIRTIO_RESET: u8 = 0x63;
/// The device asked for a reset though the driver kept to the rules.
pub const VIRTIO_NEEDS_RESET: u8 = 0x64;
/// A request did not come back in time.
pub const VIRTIO_TIMEOUT: u8 = 0x65;
/// A request came back, but not the interrupt that should have said so.
pub const VIRTIO_INTERRUPT: u8 = 0x66;
/// What came back was not in flight, or not as long as it must be, or has no status.
pub const VIRTIO_RING: u8 = 0x67;
/// The machine has too little memory for the test.
pub const VIRTIO_MEMORY: u8 = 0x68;
/// `test=rng`: the entropy is constant, or the same twice.
pub const RNG_CONTENT: u8 = 0x69;
/// A request to a disk failed.
pub const DISK_ERROR: u8 = 0x6a;
/// `test=disk`: a sector did not hold what was written to it last; the console says which.
pub const DISK_CONTENT: u8 = 0x6b;
/// `test=disk`: the disk is read-only and should not be, or the other way round; or a read-only disk
/// did not refuse a change with an I/O error.
pub const DISK_READ_ONLY: u8 = 0x6c;
/// `test=hostile`: memory changed after a reset.
pub const VIRTIO_AFTER_RESET: u8 = 0x6d;
/// `test=hostile`: a register has a wrong value.
pub const VIRTIO_REGISTER: u8 = 0x6e;
/// `test=hostile`: the device did not ask for a reset though the driver broke the rules.
pub const VIRTIO_TOLERANT: u8 = 0x6f;

/// `test=net`: a frame is not what was sent; the console says which.
pub const NET_CONTENT: u8 = 0x71;
/// `test=net`: a frame came after one that was sent later, or twice; the console says which.
pub const NET_ORDER: u8 = 0x72;
/// `test=net`: frames did not come.
pub const NET_LOST: u8 = 0x73;

/// A word of the command line that the guest knows has a value that it cannot use.
pub const BAD_COMMAND_LINE: u8 = 0x70;
/// The CPU raised an exception that no test asked for; the console says which.
pub const EXCEPTION: u8 = 0x7e;
/// The guest found a defect of its own.
pub const PANIC: u8 = 0x7f;
