#![doc = include_str!("../README.md")]
#![warn(missing_docs)]
#![forbid(unsafe_code)]

pub mod exit_code;

/// The whole guest, as an ELF file.
pub const ELF: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/guest.elf"));

// The guest itself is compiled by build.rs; these lines let rustfmt and the tests find its files.
#[cfg(rustfmt)]
#[path = "kernel/main.rs"]
mod kernel;

#[cfg(test)]
#[allow(dead_code, reason = "the guest uses more of it than the tests do")]
#[path = "kernel/cmdline.rs"]
mod cmdline;
