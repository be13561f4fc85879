//! An ELF kernel that comes along from its first byte to its last, as a decoder gives it: each part goes
//! to its place in guest memory at once, so that the whole is never anywhere else.

use std::borrow::Cow;

use vm_memory::GuestMemoryBackend;

use crate::elf::{Elf, ElfError, overlap};
use crate::error::LoadError;
use crate::image::Image;
use crate::map::MapPages;
use crate::pvh_note;

/// Takes an ELF file of a known size in parts.
pub(crate) struct ElfStream<'a, M, F> {
    memory: &'a M,
    pages: Option<&'a dyn MapPages>,
    size: u64,
    /// Called once the headers are known and in order, before anything is written.
    on_headers: F,
    state: State,
}

enum State {
    /// The start of the file, until all headers are in it.
    Headers(Vec<u8>),
    Segments {
        elf: Elf,
        notes: Vec<Note>,
        position: u64,
    },
    /// What comes is of no use any more.
    Failed(LoadError),
}

/// A `PT_NOTE` segment: where it is in the file, and its content, as far as it has come.
struct Note {
    offset: u64,
    content: Vec<u8>,
}

impl<'a, M, F> ElfStream<'a, M, F>
where
    M: GuestMemoryBackend,
    F: FnMut(&Elf) -> Result<(), LoadError>,
{
    pub(crate) fn new(
        memory: &'a M,
        pages: Option<&'a dyn MapPages>,
        size: u64,
        on_headers: F,
    ) -> Self {
        Self { memory, pages, size, on_headers, state: State::Headers(Vec::new()) }
    }

    /// The next bytes of the file. Errors are kept for the end.
    pub(crate) fn push(&mut self, bytes: &[u8], error: &impl Fn(ElfError) -> LoadError) {
        let result = match &mut self.state {
            State::Headers(start) => {
                start.extend_from_slice(bytes);
                let end = Elf::headers_end(start).unwrap_or(u64::MAX);
                if (start.len() as u64) < end.min(self.size) {
                    return;
                }
                let start = std::mem::take(start);
                self.begin(start, error)
            }
            State::Segments { elf, notes, position } => {
                let result = place(elf, notes, *position, bytes, self.memory).map_err(error);
                *position = position.saturating_add(bytes.len() as u64);
                result
            }
            State::Failed(_) => return,
        };
        if let Err(error) = result {
            self.state = State::Failed(error);
        }
    }

    /// The kernel, all of which is in memory.
    pub(crate) fn finish(
        mut self,
        error: &impl Fn(ElfError) -> LoadError,
    ) -> Result<Elf, LoadError> {
        if let State::Headers(start) = &mut self.state {
            let start = std::mem::take(start);
            self.begin(start, error)?;
        }
        match self.state {
            State::Segments { mut elf, notes, .. } => {
                for note in notes {
                    let entry = pvh_note::find_in(&note.content).map_err(error)?;
                    if entry.is_some() {
                        elf.set_pvh_entry(entry);
                        break;
                    }
                }
                Ok(elf)
            }
            State::Failed(error) => Err(error),
            State::Headers(_) => Err(error(ElfError::NoSegments)),
        }
    }

    fn begin(
        &mut self,
        start: Vec<u8>,
        error: &impl Fn(ElfError) -> LoadError,
    ) -> Result<(), LoadError> {
        let image = Image::bytes(Cow::Owned(start));
        let (elf, notes) = Elf::parse_headers(&image, self.size).map_err(error)?;
        (self.on_headers)(&elf)?;
        elf.check_memory(self.memory).map_err(error)?;
        if let Some(pages) = self.pages {
            elf.announce(pages);
        }
        let note = |(offset, size)| Note { offset, content: vec![0; size] };
        let mut notes: Vec<_> = notes.into_iter().map(note).collect();
        let position = image.size();
        let length = usize::try_from(position).unwrap_or(usize::MAX);
        let read = |source| error(ElfError::Read { what: "a segment", source });
        let bytes = image.bytes_at(0, length).map_err(read)?;
        place(&elf, &mut notes, 0, &bytes, self.memory).map_err(error)?;
        self.state = State::Segments { elf, notes, position };
        Ok(())
    }
}

fn place<M: GuestMemoryBackend>(
    elf: &Elf,
    notes: &mut [Note],
    position: u64,
    bytes: &[u8],
    memory: &M,
) -> Result<(), ElfError> {
    for note in notes {
        let size = note.content.len() as u64;
        if let Some((at, part)) = overlap(note.offset, size, position, bytes) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            let place = note.content.get_mut(at..).and_then(|rest| rest.get_mut(..part.len()));
            if let Some(place) = place {
                place.copy_from_slice(part);
            }
        }
    }
    elf.place(position, bytes, memory).map_err(|source| ElfError::Read {
        what: "a segment",
        source: std::io::Error::other(source),
    })
}
