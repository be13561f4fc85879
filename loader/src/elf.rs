//! ELF kernels (`vmlinux`): checked against file and memory before a byte is read into the guest.
//!
//! linux-loader's ELF loader is not used beyond its structures: it takes ELF32 and other machines,
//! lets segments overlap each other and the boot structures, leaves zero-filled parts unchecked,
//! and takes one short read for the end of the file.

use std::io;

use linux_loader::elf::{
    ELFCLASS64, ELFDATA2LSB, EM_X86_64, ET_EXEC, Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE,
};
use thiserror::Error;
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::image::Image;
use crate::kernel::Protocol;
use crate::layout::HIGH_MEMORY;
use crate::map::MapPages;
use crate::pvh_note;

/// Why an ELF file cannot be loaded as a kernel. Segments are numbered as the program headers are,
/// from 0.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ElfError {
    /// The file is 32-bit.
    #[error("it is a 32-bit ELF file; a 64-bit kernel is needed")]
    NotElf64,
    /// The file is big-endian.
    #[error("it is a big-endian ELF file; x86-64 is little-endian")]
    BigEndian,
    /// The file is for other processors.
    #[error("it is for another machine (e_machine {machine}); x86-64 is {EM_X86_64}")]
    Machine {
        /// `e_machine` of the file.
        machine: u16,
    },
    /// An object file, shared library, position-independent program or core dump.
    #[error(
        "it is no executable (e_type {kind}); a kernel is linked to fixed addresses ({ET_EXEC})"
    )]
    NotExecutable {
        /// `e_type` of the file.
        kind: u16,
    },
    /// The file header gives program headers a size that they cannot have.
    #[error("its program headers have {size} bytes each; {} is right", size_of::<Elf64_Phdr>())]
    ProgramHeaderSize {
        /// `e_phentsize` of the file.
        size: u16,
    },
    /// The file ends too early.
    #[error("it is cut off: {what} ends at byte {end}, the file at byte {size}")]
    Truncated {
        /// What should be there.
        what: &'static str,
        /// Where that ends in the file; `u64::MAX` if it is beyond all bounds.
        end: u64,
        /// Bytes of the file.
        size: u64,
    },
    /// No segment takes memory.
    #[error("it has nothing to load")]
    NoSegments,
    /// A segment has more bytes in the file than in memory.
    #[error(
        "segment {segment} has {file_size} bytes in the file, yet only {memory_size} in memory"
    )]
    SegmentSize {
        /// Which program header.
        segment: usize,
        /// `p_filesz`.
        file_size: u64,
        /// `p_memsz`.
        memory_size: u64,
    },
    /// A segment goes round the end of the address space.
    #[error("segment {segment} at {address:#x} with {size:#x} bytes wraps around")]
    SegmentWraps {
        /// Which program header.
        segment: usize,
        /// Guest-physical address, `p_paddr`.
        address: u64,
        /// `p_memsz`.
        size: u64,
    },
    /// A segment lies where boot structures go.
    #[error("segment {segment} at {address:#x} lies below {:#x}", HIGH_MEMORY.0)]
    SegmentTooLow {
        /// Which program header.
        segment: usize,
        /// Guest-physical address, `p_paddr`.
        address: u64,
    },
    /// Two segments claim the same memory.
    #[error("segments {first} and {second} overlap at {address:#x}")]
    SegmentsOverlap {
        /// Which program header.
        first: usize,
        /// Which other program header.
        second: usize,
        /// The first address that both claim.
        address: u64,
    },
    /// A segment lies where the guest has no memory: beyond its end, or in the hole for devices.
    #[error(
        "segment {segment} takes {start:#x} to {end:#x}, where guest memory \
         (highest address {highest:#x}) is not, or not all"
    )]
    SegmentOutsideMemory {
        /// Which program header.
        segment: usize,
        /// Guest-physical address, `p_paddr`.
        start: u64,
        /// The first address behind the segment.
        end: u64,
        /// The highest address of guest memory.
        highest: u64,
    },
    /// The entry point is in no segment.
    #[error("its {protocol:?} entry point {entry:#x} is in no segment")]
    EntryOutside {
        /// The protocol that the entry point is for.
        protocol: Protocol,
        /// Guest-physical address.
        entry: u64,
    },
    /// PVH was demanded of a kernel that does not offer it.
    #[error("it has no PVH entry point (a note `Xen` of type 18)")]
    NoPvhEntry,
    /// The PVH note is too short to hold an address.
    #[error("its PVH note has {size} bytes; an address has at least 4")]
    PvhNote {
        /// Bytes of the note's descriptor.
        size: u32,
    },
    /// The notes are larger than is sensible.
    #[error("its notes have {size} bytes; at most {limit} are read")]
    NotesTooLarge {
        /// Bytes of all notes so far.
        size: u64,
        /// The most that are read.
        limit: u64,
    },
    /// The file cannot be read.
    #[error("cannot read {what}")]
    Read {
        /// What was being read.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
}

const PAGE: u64 = 4096;
/// What is smaller is copied sooner than mapped.
const LEAST_MAPPED: u64 = 128 << 10;

/// A checked ELF kernel: its parts lie within the file and do not collide.
#[derive(Debug)]
pub(crate) struct Elf {
    /// In the order of their addresses, without empty ones.
    segments: Vec<Segment>,
    /// `e_entry`. A kernel that is only for PVH may have a virtual address here.
    entry: u64,
    pvh_entry: Option<u64>,
}

#[derive(Debug)]
struct Segment {
    /// Position among the program headers.
    number: usize,
    offset: u64,
    file_size: u64,
    start: u64,
    end: u64,
}

impl Elf {
    pub(crate) fn parse(image: &Image) -> Result<Self, ElfError> {
        let (mut elf, notes) = Self::parse_headers(image, image.size())?;
        elf.pvh_entry = pvh_note::find(image, &notes)?;
        Ok(elf)
    }

    /// All but the PVH entry, by the headers only, which must be in `image`, the start of a file of `size`
    /// bytes. Returns the places of the notes too, as offset and size.
    pub(crate) fn parse_headers(
        image: &Image,
        size: u64,
    ) -> Result<(Self, Vec<(u64, usize)>), ElfError> {
        let header = read_header(image, size)?;
        let program_headers = read_program_headers(image, &header, size)?;
        let mut segments = Vec::new();
        for (number, header) in program_headers.iter().enumerate() {
            if header.p_type == PT_LOAD && header.p_memsz | header.p_filesz != 0 {
                segments.push(Segment::new(number, header, size)?);
            }
        }
        segments.sort_unstable_by_key(|segment| segment.start);
        check_disjoint(&segments)?;
        if segments.is_empty() {
            return Err(ElfError::NoSegments);
        }
        let notes = program_headers.iter().filter(|header| header.p_type == PT_NOTE);
        let notes = pvh_note::places(size, notes)?;
        Ok((Self { segments, entry: header.e_entry, pvh_entry: None }, notes))
    }

    /// How many bytes of a file that begins with `start` have all that
    /// [`parse_headers`](Self::parse_headers) reads.
    pub(crate) fn headers_end(start: &[u8]) -> Option<u64> {
        let mut header = Elf64_Ehdr::default();
        header.as_mut_slice().copy_from_slice(start.get(..size_of::<Elf64_Ehdr>())?);
        let table = u64::from(header.e_phnum) * size_of::<Elf64_Phdr>() as u64;
        Some(header.e_phoff.saturating_add(table))
    }

    pub(crate) fn set_pvh_entry(&mut self, entry: Option<u64>) {
        self.pvh_entry = entry;
    }

    /// The first address behind the kernel, its zero-filled part included.
    pub(crate) fn end(&self) -> u64 {
        self.segments.last().map_or(0, |segment| segment.end)
    }

    /// Chooses the protocol as [`Kernel::load`](crate::Kernel::load) tells.
    pub(crate) fn entry(&self, demanded: Option<Protocol>) -> Result<(Protocol, u64), ElfError> {
        let linux = self.contains(self.entry).then_some(self.entry);
        let choice = demanded.unwrap_or(match (linux, self.pvh_entry) {
            (None, Some(_)) => Protocol::Pvh,
            (Some(linux), Some(pvh)) if linux == pvh => Protocol::Pvh,
            _ => Protocol::Linux64,
        });
        let entry = match choice {
            Protocol::Linux64 => self.entry,
            Protocol::Pvh => self.pvh_entry.ok_or(ElfError::NoPvhEntry)?,
        };
        if !self.contains(entry) {
            return Err(ElfError::EntryOutside { protocol: choice, entry });
        }
        Ok((choice, entry))
    }

    fn contains(&self, address: u64) -> bool {
        self.segments.iter().any(|segment| (segment.start..segment.end).contains(&address))
    }

    /// Checks that there is memory for all segments.
    pub(crate) fn check_memory<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), ElfError> {
        self.segments.iter().try_for_each(|segment| segment.check_memory(memory))
    }

    /// Says that all segments are about to be written.
    pub(crate) fn announce(&self, pages: &dyn MapPages) {
        for segment in &self.segments {
            pages.will_fill(GuestAddress(segment.start), segment.file_size);
        }
    }

    /// Writes what segments have of `bytes`, which are at `offset` in the file. Their memory was checked.
    pub(crate) fn place<M: GuestMemoryBackend>(
        &self,
        offset: u64,
        bytes: &[u8],
        memory: &M,
    ) -> Result<(), GuestMemoryError> {
        for segment in &self.segments {
            if let Some((at, part)) = overlap(segment.offset, segment.file_size, offset, bytes) {
                memory.write_slice(part, GuestAddress(segment.start.saturating_add(at)))?;
            }
        }
        Ok(())
    }

    /// Puts the segments into guest memory. What they want zeroed is fresh memory and left
    /// untouched, so that it costs nothing before the guest uses it.
    pub(crate) fn load<M: GuestMemoryBackend>(
        &self,
        image: &Image,
        memory: &M,
        pages: Option<&dyn MapPages>,
        may_map: bool,
    ) -> Result<(), ElfError> {
        self.check_memory(memory)?;
        for segment in &self.segments {
            segment
                .load(image, memory, pages, may_map)
                .map_err(|source| ElfError::Read { what: "a segment", source })?;
        }
        Ok(())
    }
}

impl Segment {
    fn new(number: usize, header: &Elf64_Phdr, size: u64) -> Result<Self, ElfError> {
        let &Elf64_Phdr { p_offset, p_filesz, p_memsz, p_paddr, .. } = header;
        if p_filesz > p_memsz {
            return Err(ElfError::SegmentSize {
                segment: number,
                file_size: p_filesz,
                memory_size: p_memsz,
            });
        }
        check_within("a segment", p_offset, p_filesz, size)?;
        let end = p_paddr.checked_add(p_memsz).ok_or(ElfError::SegmentWraps {
            segment: number,
            address: p_paddr,
            size: p_memsz,
        })?;
        if p_paddr < HIGH_MEMORY.0 {
            return Err(ElfError::SegmentTooLow { segment: number, address: p_paddr });
        }
        Ok(Self { number, offset: p_offset, file_size: p_filesz, start: p_paddr, end })
    }

    /// Maps the segment's whole pages if that can be done, and copies the rest.
    fn load<M: GuestMemoryBackend>(
        &self,
        image: &Image,
        memory: &M,
        pages: Option<&dyn MapPages>,
        may_map: bool,
    ) -> io::Result<()> {
        let end = self.start.saturating_add(self.file_size);
        let copy = |start, end| self.copy(image, (memory, pages), start, end);
        let Some(pages) = pages else { return copy(self.start, end) };
        let (first, last) = (self.start.next_multiple_of(PAGE), end & !(PAGE - 1));
        let aligned = self.start % PAGE == self.offset % PAGE;
        if may_map && aligned && last.saturating_sub(first) >= LEAST_MAPPED {
            let offset = self.offset.saturating_add(first - self.start);
            if image.map_to(offset, last - first, pages, GuestAddress(first))? {
                copy(self.start, first)?;
                return copy(last, end);
            }
        }
        pages.will_fill(GuestAddress(self.start), self.file_size);
        copy(self.start, end)
    }

    /// Copies what belongs to `start..end` in guest memory.
    fn copy<M: GuestMemoryBackend>(
        &self,
        image: &Image,
        memory: (&M, Option<&dyn MapPages>),
        start: u64,
        end: u64,
    ) -> io::Result<()> {
        // It fits, since the segment's range is in memory.
        let size = usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX);
        let offset = self.offset.saturating_add(start.saturating_sub(self.start));
        image.copy_to(offset, size, memory, GuestAddress(start))
    }

    fn check_memory<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), ElfError> {
        let len = usize::try_from(self.end - self.start).ok();
        if len.is_some_and(|len| memory.check_range(GuestAddress(self.start), len)) {
            return Ok(());
        }
        Err(ElfError::SegmentOutsideMemory {
            segment: self.number,
            start: self.start,
            end: self.end,
            highest: memory.last_addr().0,
        })
    }
}

fn read_header(image: &Image, size: u64) -> Result<Elf64_Ehdr, ElfError> {
    let mut header = Elf64_Ehdr::default();
    check_within("the file header", 0, size_of::<Elf64_Ehdr>() as u64, size)?;
    image
        .read_at(0, header.as_mut_slice())
        .map_err(|source| ElfError::Read { what: "the file header", source })?;
    let [.., class, data, _version, _, _, _, _, _, _, _, _, _] = header.e_ident;
    if class != ELFCLASS64 {
        return Err(ElfError::NotElf64);
    }
    if data != ELFDATA2LSB {
        return Err(ElfError::BigEndian);
    }
    if header.e_machine != EM_X86_64 {
        return Err(ElfError::Machine { machine: header.e_machine });
    }
    if header.e_type != ET_EXEC {
        return Err(ElfError::NotExecutable { kind: header.e_type });
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(ElfError::ProgramHeaderSize { size: header.e_phentsize });
    }
    Ok(header)
}

fn read_program_headers(
    image: &Image,
    header: &Elf64_Ehdr,
    file_size: u64,
) -> Result<Vec<Elf64_Phdr>, ElfError> {
    let what = "the program header table";
    let mut table = vec![Elf64_Phdr::default(); usize::from(header.e_phnum)];
    let size = u64::from(header.e_phnum) * size_of::<Elf64_Phdr>() as u64;
    check_within(what, header.e_phoff, size, file_size)?;
    let bytes = image
        .bytes_at(header.e_phoff, usize::try_from(size).unwrap_or(usize::MAX))
        .map_err(|source| ElfError::Read { what, source })?;
    for (header, bytes) in table.iter_mut().zip(bytes.chunks_exact(size_of::<Elf64_Phdr>())) {
        header.as_mut_slice().copy_from_slice(bytes);
    }
    Ok(table)
}

/// Checks that `len` bytes at `offset` are within a file of `size` bytes.
pub(crate) fn check_within(
    what: &'static str,
    offset: u64,
    len: u64,
    size: u64,
) -> Result<(), ElfError> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        end => Err(ElfError::Truncated { what, end: end.unwrap_or(u64::MAX), size }),
    }
}

/// Of a range of a file (`start`, `len`), what is in `bytes`, which are at `offset` in the file; with its
/// place in the range.
pub(crate) fn overlap(start: u64, len: u64, offset: u64, bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = start.saturating_add(len);
    let first = start.max(offset);
    let last = end.min(offset.saturating_add(bytes.len() as u64));
    let from = usize::try_from(first.checked_sub(offset)?).ok()?;
    let to = usize::try_from(last.checked_sub(offset)?).ok()?;
    let part = bytes.get(from..to).filter(|part| !part.is_empty())?;
    Some((first.saturating_sub(start), part))
}

fn check_disjoint(sorted: &[Segment]) -> Result<(), ElfError> {
    for (a, b) in sorted.iter().zip(sorted.iter().skip(1)) {
        if b.start < a.end {
            return Err(ElfError::SegmentsOverlap {
                first: a.number.min(b.number),
                second: a.number.max(b.number),
                address: b.start,
            });
        }
    }
    Ok(())
}
