//! bzImage kernels (`vmlinuz`), as distributions ship them (Documentation/arch/x86/boot.rst).
//!
//! The image's own real-mode code and decompressor are not run: the payload is unpacked here, and
//! the ELF file inside is loaded to its preferred address and entered there. The relocations that a
//! kernel with `CONFIG_RELOCATABLE` appends to that ELF file are for other addresses, and ignored.

use std::io::{self, Read};

use linux_loader::bootparam::setup_header;
use linux_loader::elf::ELFMAG;
use thiserror::Error;
use vm_memory::ByteValued;

use crate::boot_params::{BOOT_FLAG, HEADER_MAGIC};
use crate::decompress::{Compression, Sink, unpack};
use crate::elf::ElfError;
use crate::image::{Image, Reader};

/// Why a bzImage cannot be loaded.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BzImageError {
    /// The file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The file ends too early.
    #[error("it is cut off: {what} ends at byte {end}, the file at byte {size}")]
    Truncated {
        /// What should be there.
        what: &'static str,
        /// Where that ends in the file.
        end: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// The kernel is so old that its header does not tell where the payload is.
    #[error(
        "its boot protocol is {}.{:02}; 2.08 (Linux 2.6.26) or later is needed",
        version >> 8, version & 0xff
    )]
    Version {
        /// The protocol's version, major in the high byte.
        version: u16,
    },
    /// The payload is packed in no way that Linux knows.
    #[error("its payload begins with {magic:02x?}, which is no compression that Linux uses")]
    UnknownCompression {
        /// The payload's first bytes.
        magic: Vec<u8>,
    },
    /// The payload is packed in a way that cannot be unpacked here.
    #[error("its payload is packed with {compression}, which is not supported")]
    UnsupportedCompression {
        /// How it is packed.
        compression: Compression,
    },
    /// Support for the payload's compression was not compiled in.
    #[error("its payload is packed with {compression}: switch on the feature `{feature}`")]
    FeatureMissing {
        /// How it is packed.
        compression: Compression,
        /// The crate feature that brings it.
        feature: &'static str,
    },
    /// The unpacked kernel cannot fit into the guest.
    #[error(
        "its {compression} payload unpacks to {size} bytes; the guest has {limit} bytes of memory \
         for a kernel"
    )]
    PayloadTooLarge {
        /// How it is packed.
        compression: Compression,
        /// Bytes of the unpacked payload, by its own statement.
        size: u64,
        /// The most that are unpacked: the guest's memory below the device hole.
        limit: u64,
    },
    /// The guest has less memory than the kernel wants for itself (`init_size` of its setup header).
    #[error(
        "it needs memory from 0 to {} MiB for itself; the guest has {} MiB there",
        end.div_ceil(1 << 20), available >> 20
    )]
    MemoryTooSmall {
        /// The first address behind what it wants.
        end: u64,
        /// The end of the guest's memory below the device hole.
        available: u64,
    },
    /// The payload is broken.
    #[error("cannot unpack its {compression} payload")]
    Payload {
        /// How it is packed.
        compression: Compression,
        /// The reason.
        source: io::Error,
    },
    /// The payload is broken: it gives fewer or more bytes than stated at its end.
    #[error("its {compression} payload unpacks to {} than the {size} bytes that it states",
        if *longer { "more" } else { "less" })]
    PayloadSize {
        /// How it is packed.
        compression: Compression,
        /// Bytes of the unpacked payload, by its own statement.
        size: u64,
        /// Whether it gives more; unpacking stopped there.
        longer: bool,
    },
    /// What was unpacked is no ELF file.
    #[error("its payload holds no ELF file")]
    NotElf,
    /// The ELF file in the payload cannot be loaded.
    #[error("cannot load the ELF kernel in its payload")]
    Elf(#[source] ElfError),
}

/// Where the setup header begins in the file, and in `boot_params`.
const HEADER_OFFSET: u64 = 0x1f1;
/// The setup header ends as many bytes behind this offset as the byte before tells.
const HEADER_END_BASE: usize = 0x202;
const SECTOR: u64 = 512;
const FIRST_VERSION_WITH_PAYLOAD: u16 = 0x0208;

/// A bzImage whose header was checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BzImage {
    header: setup_header,
    payload_offset: u64,
    payload_size: u32,
}

impl BzImage {
    /// Whether `start`, the first bytes of a file, are those of a bzImage.
    pub(crate) fn is_at(start: &[u8]) -> bool {
        let boot_flag = start.get(0x1fe..0x200);
        let magic = start.get(0x202..0x206);
        boot_flag == Some(&BOOT_FLAG.to_le_bytes()) && magic == Some(&HEADER_MAGIC.to_le_bytes())
    }

    pub(crate) fn parse(image: &Image) -> Result<Self, BzImageError> {
        let header = read_header(image)?;
        let version = header.version;
        if version < FIRST_VERSION_WITH_PAYLOAD {
            return Err(BzImageError::Version { version });
        }
        let sectors = match header.setup_sects {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let payload_offset = (sectors + 1) * SECTOR + u64::from(header.payload_offset);
        let payload_size = header.payload_length;
        let end = payload_offset + u64::from(payload_size);
        check_within("the payload", end, image.size())?;
        Ok(Self { header, payload_offset, payload_size })
    }

    /// The setup header, for `boot_params`.
    pub(crate) fn header(&self) -> setup_header {
        self.header
    }

    /// The longest command line that the kernel reads, without NUL.
    pub(crate) fn cmdline_limit(&self) -> usize {
        usize::try_from(self.header.cmdline_size).unwrap_or(usize::MAX)
    }

    /// The first address that the initrd must not touch.
    pub(crate) fn initrd_limit(&self) -> u64 {
        u64::from(self.header.initrd_addr_max) + 1
    }

    /// The end of the memory that the kernel wants for itself before it knows its memory map.
    pub(crate) fn init_end(&self) -> u64 {
        self.header.pref_address.saturating_add(u64::from(self.header.init_size))
    }

    /// How the payload is packed, and how many bytes it states to give, which are no more than `limit`.
    pub(crate) fn payload(&self, image: &Image, limit: u64) -> Result<Payload, BzImageError> {
        let read = |source| BzImageError::Read { what: "the payload", source };
        let len = u64::from(self.payload_size);
        let mut start = [0; 4];
        let known = usize::try_from(len).unwrap_or(usize::MAX).min(start.len());
        let start = start.get_mut(..known).unwrap_or_default();
        image.read_at(self.payload_offset, start).map_err(read)?;
        let compression = Compression::of(start)
            .ok_or_else(|| BzImageError::UnknownCompression { magic: start.to_vec() })?;
        check_enabled(compression)?;
        let data_len = len.checked_sub(4).ok_or(BzImageError::Truncated {
            what: "the payload's size",
            end: 4,
            size: len,
        })?;
        // The size of the unpacked kernel is the last thing in every payload: gzip ends with it by itself,
        // and behind the others the kernel's build appends it for its decompressor.
        let mut size = [0; 4];
        image.read_at(self.payload_offset + data_len, &mut size).map_err(read)?;
        let size = u32::from_le_bytes(size);
        if u64::from(size) > limit {
            return Err(BzImageError::PayloadTooLarge { compression, size: size.into(), limit });
        }
        let len = if compression == Compression::Gzip { len } else { data_len };
        Ok(Payload { compression, offset: self.payload_offset, len, size })
    }
}

/// A bzImage's payload.
#[derive(Debug)]
pub(crate) struct Payload {
    compression: Compression,
    offset: u64,
    len: u64,
    size: u32,
}

impl Payload {
    /// Bytes of the unpacked kernel, by its own statement.
    pub(crate) fn size(&self) -> u64 {
        u64::from(self.size)
    }

    /// Its bytes, as they are in the image, without the size behind them.
    pub(crate) fn reader<'a>(&self, image: &'a Image) -> Reader<'a> {
        image.reader(self.offset, self.len)
    }

    /// Unpacks what its [`reader`](Self::reader) gives into `sink`, which is called at least once, and gets a
    /// part of an ELF file in each call. What it gets is to be believed only after this has succeeded.
    pub(crate) fn unpack(&self, data: impl Read, sink: &mut Sink<'_>) -> Result<(), BzImageError> {
        let compression = self.compression;
        let mut start: Vec<u8> = Vec::new();
        let mut sink = |bytes: &[u8]| {
            if let Some(missing) = ELFMAG.len().checked_sub(start.len()) {
                start.extend(bytes.iter().take(missing));
            }
            sink(bytes)
        };
        let unpacked = unpack(compression, data, self.size, &mut sink)
            .map_err(|source| BzImageError::Payload { compression, source })?;
        let stated = self.size();
        if unpacked != stated {
            let longer = unpacked > stated;
            return Err(BzImageError::PayloadSize { compression, size: stated, longer });
        }
        if start != ELFMAG { Err(BzImageError::NotElf) } else { Ok(()) }
    }
}

fn check_enabled(compression: Compression) -> Result<(), BzImageError> {
    match compression.feature() {
        _ if compression.is_enabled() => Ok(()),
        Some(feature) => Err(BzImageError::FeatureMissing { compression, feature }),
        None => Err(BzImageError::UnsupportedCompression { compression }),
    }
}

fn read_header(image: &Image) -> Result<setup_header, BzImageError> {
    let mut header = setup_header::default();
    let end = HEADER_OFFSET + size_of::<setup_header>() as u64;
    check_within("the setup header", end, image.size())?;
    image
        .read_at(HEADER_OFFSET, header.as_mut_slice())
        .map_err(|source| BzImageError::Read { what: "the setup header", source })?;
    // Older headers are shorter; code follows them, which must not be taken for fields.
    let len = HEADER_END_BASE + usize::from(header.jump.to_le_bytes()[1]);
    let len = len.saturating_sub(usize::try_from(HEADER_OFFSET).unwrap_or(0));
    if let Some(beyond) = header.as_mut_slice().get_mut(len..) {
        beyond.fill(0);
    }
    Ok(header)
}

fn check_within(what: &'static str, end: u64, size: u64) -> Result<(), BzImageError> {
    if end > size {
        return Err(BzImageError::Truncated { what, end, size });
    }
    Ok(())
}
