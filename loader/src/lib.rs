#![doc = include_str!("../README.md")]
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod acpi;
mod boot_params;
mod bzimage;
#[cfg(feature = "kernel-cache")]
mod cache;
mod cmdline;
mod decompress;
mod e820;
mod elf;
mod elf_stream;
mod error;
mod image;
mod initrd;
mod kernel;
pub mod layout;
#[allow(unsafe_code)] // Three system calls on memfds.
mod map;
pub mod mptable;
mod pvh;
mod pvh_note;

pub use bzimage::BzImageError;
#[cfg(feature = "kernel-cache")]
pub use cache::CacheError;
pub use cmdline::{Cmdline, CmdlineError};
pub use decompress::Compression;
pub use elf::ElfError;
pub use error::LoadError;
pub use image::{ImageError, ImageName};
pub use initrd::Initrd;
pub use kernel::{BootConfig, Entry, Kernel, Protocol};
pub use map::MapPages;

/// Guest memory and its addresses.
pub use vm_memory;
