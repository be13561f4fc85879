#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod acpi;
mod boot_params;
mod bzimage;
mod cmdline;
mod decompress;
mod e820;
mod elf;
mod error;
mod image;
mod initrd;
mod kernel;
pub mod layout;
pub mod mptable;
mod pvh;
mod pvh_note;

pub use bzimage::BzImageError;
pub use cmdline::{Cmdline, CmdlineError};
pub use decompress::Compression;
pub use elf::ElfError;
pub use error::LoadError;
pub use image::{ImageError, ImageName};
pub use initrd::Initrd;
pub use kernel::{BootConfig, Entry, Kernel, Protocol};
