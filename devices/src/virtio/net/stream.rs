//! A stream socket over which frames go with their length before them, as four bytes, the highest
//! first: what QEMU's `-netdev stream` and passt speak.

use std::io;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use super::backend::{BackendError, Frame, MAX_FRAME_LEN, NetBackend, Room};
use super::header::FrameHeader;
use super::sys;

/// Bytes of a length.
const LENGTH_LEN: usize = 4;
/// Bytes of the longest frame with its length.
const MOST: usize = LENGTH_LEN + MAX_FRAME_LEN;
/// How much is read at once.
const INPUT_LEN: usize = 256 << 10;
/// Frames are kept until they are so many bytes, to be written at once.
const OUTPUT_LEN: usize = 64 << 10;

/// A stream socket, and what of frames is on its way.
#[derive(Debug)]
pub(super) struct Stream {
    socket: UnixStream,
    input: Input,
    output: Output,
}

impl Stream {
    pub(super) fn new(socket: UnixStream) -> Self {
        Self { socket, input: Input::default(), output: Output::default() }
    }

    /// Nothing more can come of it: the other end is told.
    fn give_up(&self, error: io::Error) -> BackendError {
        let _ = self.socket.shutdown(Shutdown::Both); // It may be down already.
        BackendError::Gone(error)
    }
}

impl NetBackend for Stream {
    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
        if self.output.waiting() >= OUTPUT_LEN {
            self.flush()?;
        }
        let length = u32::try_from(frame.len()).map_err(|_| BackendError::Refused)?;
        let room = self.output.append(LENGTH_LEN.saturating_add(frame.len()));
        let Some((head, body)) = room.split_at_mut_checked(LENGTH_LEN) else {
            return Err(BackendError::Refused);
        };
        head.copy_from_slice(&length.to_be_bytes());
        // A chain's bytes can always be read: the room does not stay half filled.
        frame.read_at(0, body)?;
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        loop {
            match self.input.next() {
                Next::Frame(frame) => return room.put(FrameHeader::default(), frame),
                Next::Incomplete => {}
                // Where the next frame would begin, nobody knows.
                Next::Broken(error) => return Err(self.give_up(error)),
            }
            match sys::receive(self.socket.as_fd(), self.input.room()) {
                Ok(0) => return Err(self.give_up(io::ErrorKind::UnexpectedEof.into())),
                Ok(count) => self.input.filled(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(BackendError::WouldBlock);
                }
                Err(error) => return Err(self.give_up(error)),
            }
        }
    }

    fn flush(&mut self) -> Result<(), BackendError> {
        while self.output.waiting() > 0 {
            match sys::send(self.socket.as_fd(), self.output.bytes()) {
                Ok(count) => self.output.written(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(BackendError::WouldBlock);
                }
                Err(error) => return Err(self.give_up(error)),
            }
        }
        Ok(())
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

/// What was read and not given out yet. It never holds more than one read.
#[derive(Debug)]
struct Input {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

enum Next<'a> {
    Frame(&'a [u8]),
    Incomplete,
    Broken(io::Error),
}

impl Default for Input {
    fn default() -> Self {
        Self { bytes: vec![0; INPUT_LEN], start: 0, end: 0 }
    }
}

impl Input {
    fn next(&mut self) -> Next<'_> {
        let bytes = self.bytes.get(self.start..self.end).unwrap_or_default();
        let Some((&length, rest)) = bytes.split_first_chunk::<LENGTH_LEN>() else {
            return Next::Incomplete;
        };
        let length = u32::from_be_bytes(length);
        let Some(length) = usize::try_from(length).ok().filter(|&length| length <= MAX_FRAME_LEN)
        else {
            let text = format!("a frame of {length} bytes, more than {MAX_FRAME_LEN}");
            return Next::Broken(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        let Some(frame) = rest.get(..length) else { return Next::Incomplete };
        self.start = self.start.saturating_add(LENGTH_LEN).saturating_add(length);
        Next::Frame(frame)
    }

    /// Where more can be read to: for at least the longest frame, as what is there is incomplete.
    fn room(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.bytes.len().saturating_sub(self.start) < MOST {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end.saturating_sub(self.start));
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }
}

/// What is to be written: at most [`OUTPUT_LEN`] and a frame. What was written before it takes no more
/// than [`OUTPUT_LEN`], however little of it the other end reads at a time.
#[derive(Debug, Default)]
struct Output {
    bytes: Vec<u8>,
    start: usize,
}

impl Output {
    fn waiting(&self) -> usize {
        self.bytes.len().saturating_sub(self.start)
    }

    fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Room for `len` more bytes.
    fn append(&mut self, len: usize) -> &mut [u8] {
        if self.start >= OUTPUT_LEN {
            self.bytes.drain(..self.start.min(self.bytes.len()));
            self.start = 0;
        }
        let end = self.bytes.len();
        self.bytes.resize(end.saturating_add(len), 0);
        self.bytes.get_mut(end..).unwrap_or_default()
    }

    fn written(&mut self, count: usize) {
        self.start = self.start.saturating_add(count);
        if self.waiting() == 0 {
            self.bytes.clear();
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_bounded_when_the_other_end_never_reads_all_of_it() {
        let (mut output, mut sent, mut next) = (Output::default(), Vec::new(), 0u8);
        let mut expected = Vec::new();
        for _ in 0..2000 {
            while output.waiting() < OUTPUT_LEN {
                next = next.wrapping_add(1);
                output.append(3000).fill(next);
                expected.extend([next; 3000]);
            }
            sent.extend_from_slice(&output.bytes()[..1000]);
            output.written(1000);
            assert!(output.bytes.len() <= 2 * OUTPUT_LEN + MOST, "{}", output.bytes.len());
        }
        sent.extend_from_slice(output.bytes());
        assert!(sent == expected, "bytes were lost or mixed up");
    }
}
