//! A kernel image, and how it is entered.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use linux_loader::bootparam::setup_header;
use linux_loader::elf::ELFMAG;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::bzimage::{BzImage, BzImageError, Payload};
use crate::cmdline::Cmdline;
use crate::decompress::Sink;
use crate::elf::{Elf, ElfError};
use crate::elf_stream::ElfStream;
use crate::error::LoadError;
use crate::image::{Image, ImageError};
use crate::initrd::Initrd;
use crate::layout::{BOOT_PARAMS, COMMAND_LINE, HOLE_START, PVH_START_INFO};
use crate::map::{self, MapPages};
use crate::{boot_params, e820, pvh};

/// A kernel image: an ELF file (`vmlinux`) or a bzImage (`vmlinuz`), told apart by its content.
///
/// It can be loaded into any number of machines, also from several threads at once.
#[derive(Clone, Debug)]
pub struct Kernel {
    image: Arc<Image>,
    /// Of the bzImage that `image` was unpacked from.
    unpacked_from: Option<BzImage>,
    protocol: Option<Protocol>,
    /// Whether the file may be mapped although it could be changed.
    mapped: bool,
}

impl Kernel {
    /// The kernel in the file at `path`. Only its first bytes are read now.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not there, not a regular file, empty, or no kernel.
    pub fn file(path: impl AsRef<Path>) -> Result<Self, ImageError> {
        Self::from_image(Image::file(path.as_ref())?)
    }

    /// The kernel in a file that is open for reading already; the descriptor's file offset is
    /// neither used nor moved.
    ///
    /// # Errors
    ///
    /// [`ImageError`] if it is not a regular file, empty, or no kernel.
    pub fn fd(fd: OwnedFd) -> Result<Self, ImageError> {
        Self::from_image(Image::fd(fd)?)
    }

    /// The kernel in `bytes`, which are looked at when it is loaded.
    pub fn bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self::new(Image::bytes(bytes.into()))
    }

    /// Reads the kernel now, once for all the machines that it is given to (this value can be cloned), and
    /// unpacks it if it is a bzImage. A machine then *maps* it: nothing is copied but what the
    /// guest changes, and the rest, as the kernel's text, is in memory once for all machines.
    ///
    /// It takes as much memory as the unpacked kernel, for as long as this value, a clone of it, or a
    /// machine lives. The memory is a sealed memfd, so whatever happens to the file where the kernel came
    /// from does no harm.
    ///
    /// ```no_run
    /// # use sparkler_loader::Kernel;
    /// let kernel = Kernel::file("/boot/vmlinuz")?.shared()?;
    /// let for_another_machine = kernel.clone();
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LoadError::Share`] if memory is lacking; another [`LoadError`] if the image cannot be read or unpacked.
    pub fn shared(self) -> Result<Self, LoadError> {
        let name = || self.image.name().clone();
        let no_room = |source| LoadError::Share { image: name(), source };
        let mut file = map::memfd().map_err(no_room)?;
        let unpacked_from = match self.format()? {
            Format::Elf => {
                let read = |source| ImageError::Read { image: name(), source }.into();
                let copy = |sink: &mut Sink<'_>| self.image.read_into(sink).map_err(read);
                write_to(&mut file, copy, no_room)?;
                self.unpacked_from
            }
            Format::BzImage => {
                let (bzimage, payload) = self.payload(HOLE_START.0)?;
                let data = payload.reader(&self.image);
                let broken = |source| self.bzimage_error(source);
                let unpack = |sink: &mut Sink<'_>| payload.unpack(data, sink).map_err(broken);
                write_to(&mut file, unpack, no_room)?;
                Some(bzimage)
            }
        };
        let image = Image::sealed(name(), file).map_err(no_room)?;
        Ok(Self { image: Arc::new(image), unpacked_from, ..self })
    }

    /// Lets machines map the kernel's file instead of reading it. An ELF file's text is then in memory once
    /// for all machines, those of other processes included, for it is the file's own page cache.
    /// A bzImage has to be unpacked and is not mapped: see [`shared`](Self::shared), and `cached`, which the
    /// feature `kernel-cache` brings.
    ///
    /// **The file must stay as it is while a machine runs.** Whoever writes to it changes running
    /// kernels, and whoever makes it shorter ends the processes that run them (`SIGBUS`). To
    /// replace it by another file of the same name, as package managers do, is safe. A sealed memfd, given
    /// to [`fd`](Self::fd), needs no such trust, and is mapped without this word.
    #[must_use]
    pub fn mapped(mut self) -> Self {
        self.mapped = true;
        self
    }

    /// Demands a boot protocol, where [`load`](Self::load) would choose by itself.
    #[must_use]
    pub fn with_protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// How many bytes of the image [`load_with`](Self::load_with) has to read: none to speak of if it can
    /// map them. From a bzImage come more than are read.
    #[must_use]
    pub fn bytes_to_read(&self) -> u64 {
        if self.may_be_mapped() { 0 } else { self.image.size() }
    }

    /// Writes the kernel, its command line, the initrd, and what the boot protocol hands over
    /// (`boot_params` or `hvm_start_info`) to `memory`, at the places of [`layout`](crate::layout).
    ///
    /// `memory` must be fresh: what shall be zero is not written. Nothing is written before kernel
    /// and initrd are known to fit, yet after an error that comes later, as from a file that cannot
    /// be read to its end, it may hold a part of them.
    ///
    /// Unless [`with_protocol`](Self::with_protocol) demands one, the protocol follows from the
    /// ELF file, which may have two entry points: `e_entry`, and the one of a PVH note
    /// (`XEN_ELFNOTE_PHYS32_ENTRY`). It is [`Protocol::Linux64`] at `e_entry`, except when there
    /// is a PVH note and `e_entry` is no 64-bit entry point, since it is in no segment (a virtual
    /// address) or the same as the note's (32-bit code): then it is [`Protocol::Pvh`].
    ///
    /// A bzImage is unpacked in this process, straight into guest memory, which takes some
    /// memory beside: up to 17 MiB with LZ4, and with the others as much as their window.
    ///
    /// # Errors
    ///
    /// [`LoadError`] if the image is broken, of a kind that cannot be loaded, or does not fit.
    pub fn load<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        config: &BootConfig<'_>,
    ) -> Result<Entry, LoadError> {
        self.load_with(memory, config, None)
    }

    /// As [`load`](Self::load), with `pages` to prepare guest memory, to map what can be mapped, and to give up
    /// when nobody wants the machine any more.
    ///
    /// # Errors
    ///
    /// As of [`load`](Self::load).
    pub fn load_with<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        config: &BootConfig<'_>,
        pages: Option<&dyn MapPages>,
    ) -> Result<Entry, LoadError> {
        match (self.unpacked_from, self.format()?) {
            (Some(bzimage), _) => self.load_unpacked(&bzimage, memory, config, pages),
            (None, Format::BzImage) => self.load_bzimage(memory, config, pages),
            (None, Format::Elf) => {
                let error = |source| LoadError::Elf { image: self.image.name().clone(), source };
                let elf = Elf::parse(&self.image).map_err(error)?;
                let entry = elf.entry(self.protocol).map_err(error)?;
                let info = BootInfo::new(memory, config, elf.end(), u64::MAX)?;
                elf.load(&self.image, memory, pages, self.may_be_mapped()).map_err(error)?;
                info.write((memory, pages), config, entry, None)
            }
        }
    }

    /// Unpacks a bzImage to where it belongs.
    fn load_bzimage<M: GuestMemoryBackend>(
        &self,
        memory: &M,
        config: &BootConfig<'_>,
        pages: Option<&dyn MapPages>,
    ) -> Result<Entry, LoadError> {
        let elf_error = |source| self.bzimage_error(BzImageError::Elf(source));
        let (bzimage, payload) = self.payload(e820::end_of_low_memory(memory))?;
        self.check_cmdline(&bzimage, config)?;
        let mut info = None;
        let mut stream = ElfStream::new(memory, pages, payload.size(), |elf: &Elf| {
            info = Some(self.boot_info(&bzimage, elf, memory, config)?);
            Ok(())
        });
        let mut sink = |bytes: &[u8]| {
            stream.push(bytes, &elf_error);
            map::check_wanted(pages)
        };
        let data = payload.reader(&self.image);
        payload.unpack(data, &mut sink).map_err(|source| self.bzimage_error(source))?;
        let elf = stream.finish(&elf_error)?;
        let entry = elf.entry(self.protocol).map_err(elf_error)?;
        let info = info.ok_or(elf_error(ElfError::NoSegments))?;
        info.write((memory, pages), config, entry, Some(bzimage.header()))
    }

    /// Loads the ELF file that was in a bzImage.
    fn load_unpacked<M: GuestMemoryBackend>(
        &self,
        bzimage: &BzImage,
        memory: &M,
        config: &BootConfig<'_>,
        pages: Option<&dyn MapPages>,
    ) -> Result<Entry, LoadError> {
        let error = |source| self.bzimage_error(BzImageError::Elf(source));
        self.check_cmdline(bzimage, config)?;
        let elf = Elf::parse(&self.image).map_err(error)?;
        let entry = elf.entry(self.protocol).map_err(error)?;
        let info = self.boot_info(bzimage, &elf, memory, config)?;
        elf.load(&self.image, memory, pages, self.may_be_mapped()).map_err(error)?;
        info.write((memory, pages), config, entry, Some(bzimage.header()))
    }

    fn boot_info<M: GuestMemoryBackend>(
        &self,
        bzimage: &BzImage,
        elf: &Elf,
        memory: &M,
        config: &BootConfig<'_>,
    ) -> Result<BootInfo, LoadError> {
        let end = elf.end().max(bzimage.init_end());
        let available = e820::end_of_low_memory(memory);
        if end > available {
            return Err(self.bzimage_error(BzImageError::MemoryTooSmall { end, available }));
        }
        BootInfo::new(memory, config, end, bzimage.initrd_limit())
    }

    fn check_cmdline(&self, bzimage: &BzImage, config: &BootConfig<'_>) -> Result<(), LoadError> {
        let (length, limit) = (config.cmdline.as_str().len(), bzimage.cmdline_limit());
        if length > limit {
            let image = self.image.name().clone();
            return Err(LoadError::CmdlineTooLong { image, length, limit });
        }
        Ok(())
    }

    /// This kernel, as it was in `bzimage`, which is known to be its own.
    #[cfg(feature = "kernel-cache")]
    pub(crate) fn unpacked(self, image: Image, bzimage: BzImage) -> Self {
        Self { image: Arc::new(image), unpacked_from: Some(bzimage), ..self }
    }

    #[cfg(feature = "kernel-cache")]
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// Whether nothing needs to be unpacked.
    #[cfg(feature = "kernel-cache")]
    pub(crate) fn is_elf(&self) -> Result<bool, ImageError> {
        Ok(matches!(self.format()?, Format::Elf))
    }

    /// The bzImage, and its payload, which states no more bytes than `limit`.
    pub(crate) fn payload(&self, limit: u64) -> Result<(BzImage, Payload), LoadError> {
        BzImage::parse(&self.image)
            .and_then(|bzimage| Ok((bzimage, bzimage.payload(&self.image, limit)?)))
            .map_err(|source| self.bzimage_error(source))
    }

    pub(crate) fn bzimage_error(&self, source: BzImageError) -> LoadError {
        LoadError::BzImage { image: self.image.name().clone(), source }
    }

    fn may_be_mapped(&self) -> bool {
        self.mapped || self.image.is_sealed()
    }

    fn format(&self) -> Result<Format, ImageError> {
        detect(&self.image)
    }

    fn from_image(image: Image) -> Result<Self, ImageError> {
        detect(&image)?;
        Ok(Self::new(image))
    }

    fn new(image: Image) -> Self {
        Self { image: Arc::new(image), unpacked_from: None, protocol: None, mapped: false }
    }
}

/// Has `give` write to `file`. An error is what `give` has to say, or what `unwritten` makes of the file's own.
pub(crate) fn write_to(
    file: &mut File,
    give: impl FnOnce(&mut Sink<'_>) -> Result<(), LoadError>,
    unwritten: impl FnOnce(io::Error) -> LoadError,
) -> Result<(), LoadError> {
    let mut failed = None;
    let given = give(&mut |bytes| {
        file.write_all(bytes).map_err(|source| {
            let kind = source.kind();
            failed = Some(source);
            kind.into()
        })
    });
    failed.map_or(given, |source| Err(unwritten(source)))
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
    /// Addresses outside `memory` that the memory map shall call reserved.
    pub reserved: &'a [Range<u64>],
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

/// What both protocols tell the kernel, each in its own form.
#[derive(Debug)]
pub(crate) struct BootInfo {
    pub(crate) e820: Vec<e820::Entry>,
    /// Address and size.
    pub(crate) initrd: Option<(u64, u64)>,
    pub(crate) rsdp: Option<GuestAddress>,
}

impl BootInfo {
    /// Finds a place for the initrd behind the kernel, which ends at `kernel_end`.
    fn new<M: GuestMemoryBackend>(
        memory: &M,
        config: &BootConfig<'_>,
        kernel_end: u64,
        initrd_limit: u64,
    ) -> Result<Self, LoadError> {
        let limit = e820::end_of_low_memory(memory).min(HOLE_START.0).min(initrd_limit);
        let initrd = config.initrd.map(|initrd| initrd.place(kernel_end, limit)).transpose()?;
        Ok(Self { e820: e820::map(memory, config.reserved)?, initrd, rsdp: config.rsdp })
    }

    fn write<M: GuestMemoryBackend>(
        &self,
        (memory, pages): (&M, Option<&dyn MapPages>),
        config: &BootConfig<'_>,
        (protocol, entry): (Protocol, u64),
        header: Option<setup_header>,
    ) -> Result<Entry, LoadError> {
        if let (Some(initrd), Some((address, _))) = (config.initrd, self.initrd) {
            initrd.load((memory, pages), address)?;
        }
        memory.write_slice(&config.cmdline.to_bytes_with_nul(), COMMAND_LINE).map_err(
            |source| LoadError::Memory {
                what: "the command line",
                address: COMMAND_LINE.0,
                source,
            },
        )?;
        let boot_info = match protocol {
            Protocol::Linux64 => {
                boot_params::write(memory, header, self)?;
                BOOT_PARAMS
            }
            Protocol::Pvh => {
                pvh::write(memory, self)?;
                PVH_START_INFO
            }
        };
        Ok(Entry { protocol, instruction_pointer: GuestAddress(entry), boot_info })
    }
}

#[derive(Clone, Copy, Debug)]
enum Format {
    Elf,
    BzImage,
}

/// Tells the format by the first bytes, as far as a bzImage's magic number.
fn detect(image: &Image) -> Result<Format, ImageError> {
    image.check_not_empty()?;
    let mut start = [0; 0x206];
    let len = usize::try_from(image.size()).unwrap_or(usize::MAX).min(start.len());
    let start = start.get_mut(..len).unwrap_or_default();
    image
        .read_at(0, start)
        .map_err(|source| ImageError::Read { image: image.name().clone(), source })?;
    match &*start {
        start if start.starts_with(ELFMAG) => Ok(Format::Elf),
        start if BzImage::is_at(start) => Ok(Format::BzImage),
        start => {
            Err(ImageError::NotAKernel { image: image.name().clone(), found: describe(start) })
        }
    }
}

/// Names what people take for a kernel by mistake.
fn describe(start: &[u8]) -> &'static str {
    match start {
        [0x1f, 0x8b, ..] => "a gzip file",
        [0xfd, b'7', b'z', b'X', b'Z', ..] => "an xz file",
        [0x28, 0xb5, 0x2f, 0xfd, ..] => "a Zstandard file",
        [b'0', b'7', b'0', b'7', b'0', ..] => "a cpio archive (an initrd?)",
        start if start.get(0x38..0x3c) == Some(b"ARM\x64") => "a kernel for arm64",
        start if start.get(0x38..0x3c) == Some(b"RSC\x05") => "a kernel for RISC-V",
        start if start.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) => "a boot sector or disk image",
        start if start.iter().all(|&byte| matches!(byte, b'\t'..=b'\r' | b' '..=b'~')) => {
            "a text file"
        }
        _ => "of an unknown format",
    }
}
