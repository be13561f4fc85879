//! A kernel image, and how it is entered.

use std::borrow::Cow;
use std::os::fd::OwnedFd;
use std::path::Path;

use vm_memory::{GuestAddress, GuestMemoryBackend};

use crate::cmdline::Cmdline;
use crate::error::LoadError;
use crate::image::{Image, ImageError};
use crate::initrd::Initrd;

/// A kernel image: an ELF file (`vmlinux`) or a bzImage (`vmlinuz`), told apart by its content.
#[derive(Debug)]
pub struct Kernel {
    image: Image,
    protocol: Option<Protocol>,
}

impl Kernel {
    /// The kernel in the file at `path`. Only its first bytes are read now.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there, not a regular file, empty, or no kernel.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Ok(Self { image: Image::file(path.as_ref())?, protocol: None })
    }

    /// The kernel in a file that is open for reading already; the descriptor's file offset is
    /// neither used nor moved.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not a regular file, empty, or no kernel.
    pub fn fd(fd: OwnedFd) -> Result<Self, ImageError> {
        Ok(Self { image: Image::fd(fd)?, protocol: None })
    }

    /// The kernel in `bytes`, which are looked at when it is loaded.
    pub fn bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { image: Image::bytes(bytes.into()), protocol: None }
    }

    /// Demands a boot protocol, where [`load`](Self::load) would choose by itself.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Loads.
    ///
    /// # Errors
    ///
    /// [`LoadError`].
    pub fn load<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        config: &BootConfig<'_>,
    ) -> Result<Entry, LoadError> {
        let _ = (memory, config, &self.image);
        todo!()
    }
}

/// What the kernel is given beside itself.
#[derive(Clone, Copy, Debug)]
pub struct BootConfig<'a> {
    /// The command line.
    pub cmdline: &'a Cmdline,
    /// The initial RAM disk, if any.
    pub initrd: Option<&'a Initrd>,
    /// Where the ACPI tables begin (what [`acpi::write`](crate::acpi::write) returned), if there
    /// are any.
    pub rsdp: Option<GuestAddress>,
}

/// How the first vCPU is to be set up and where it begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which state the protocol asks for.
    pub protocol: Protocol,
    /// The address of the first instruction.
    pub instruction_pointer: GuestAddress,
    /// What the kernel is handed: [`layout::BOOT_PARAMS`](crate::layout::BOOT_PARAMS) in RSI, or
    /// [`layout::PVH_START_INFO`](crate::layout::PVH_START_INFO) in EBX.
    pub boot_info: GuestAddress,
}

/// A way to enter a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// The 64-bit Linux boot protocol: long mode, paging on with memory identity-mapped, flat
    /// `__BOOT_CS` (0x10) and `__BOOT_DS` (0x18), interrupts off, RSI = `boot_params`.
    Linux64,
    /// PVH, the Xen/HVM direct boot: 32-bit protected mode, paging off, flat segments, interrupts
    /// off, EBX = `hvm_start_info`.
    Pvh,
}
