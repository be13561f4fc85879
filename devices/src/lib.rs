//! The device side of Sparkler: what a guest meets when it touches a port or an MMIO address.
//!
//! A device is a [`BusDevice`]: bytes at an offset, read or written, behind `&self`. A [`Bus`] finds
//! the device of an address. A device raises its interrupt through the trait [`Interrupt`] and ends
//! the machine through [`PowerSink`], so it does not know KVM and is tested without it.
//!
//! | module | device |
//! |---|---|
//! | [`serial`] | the 16550A UART of COM1, with bounded buffers towards the host |
//! | [`power`] | ACPI sleep and reset registers, i8042 reset, exit port |
//! | [`boot_mark`] | a port that stamps the time line of a boot |
//! | [`io_apic`] | the interrupt controller between the devices and the processors |
//! | [`virtio`] | the virtio MMIO transport, its queues, and the devices on it |
#![deny(unsafe_code)] // Allowed in files named `sys`, and in the one of io_uring.
#![warn(missing_docs, clippy::arithmetic_side_effects)]
#![cfg_attr(test, allow(clippy::arithmetic_side_effects))] // A test that overflows fails, as it should.

pub mod boot_mark;
mod bus;
mod interrupt;
pub mod io_apic;
mod no_rtc;
pub mod power;
pub mod serial;
mod sys;
pub mod virtio;

pub use bus::{Bus, BusDevice, BusError};
pub use interrupt::Interrupt;
pub use no_rtc::NoRtc;
pub use power::{PowerEvent, PowerSink};

/// Bytes of stack that each of a machine's threads has, those of vCPUs and console too.
///
/// Less than a huge page: where the host has transparent huge pages always, one at the end of a larger stack
/// would make it 2 MiB of memory, for the few KiB of it that are used.
pub const THREAD_STACK_SIZE: usize = 1 << 20;

/// Guest memory and its addresses.
pub use vm_memory;
/// Something that becomes readable when it is told to: an [`Interrupt`], or a notification to a device.
pub use vmm_sys_util::eventfd::EventFd;
