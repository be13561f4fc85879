//! ELF
use thiserror::Error;
/// Why an ELF file cannot be loaded as a kernel.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ElfError {}
