//! The kernel's command line.

use std::fmt;

use thiserror::Error;

use crate::layout::COMMAND_LINE_SIZE;

/// A command line that Linux takes as it is: at most [`Cmdline::MAX_LEN`] bytes of printable ASCII,
/// tabs and newlines (Linux reads both as blanks).
///
/// Other characters are refused because they do not arrive unharmed: Linux ends the line at a NUL
/// and splits it at byte 0xa0, which is a part of many UTF-8 characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cmdline(String);

impl Cmdline {
    /// The longest command line in bytes: Linux's `COMMAND_LINE_SIZE` without the final NUL.
    pub const MAX_LEN: usize = COMMAND_LINE_SIZE - 1;

    /// Words for Linux that leave out what takes time at boot and serves nothing in this machine:
    /// `cryptomgr.notests` (the kernel's ciphers do not test themselves). They belong in front of other
    /// words, which then have the last one. Nothing adds them by itself but the binary.
    pub const FAST_BOOT: &'static str = "cryptomgr.notests";

    /// Takes `line` over if a kernel can.
    ///
    /// # Errors
    ///
    /// [`CmdlineError`] when the line is too long or has a character that it must not have.
    pub fn new(line: &str) -> Result<Self, CmdlineError> {
        if line.len() > Self::MAX_LEN {
            return Err(CmdlineError::TooLong { length: line.len(), limit: Self::MAX_LEN });
        }
        for (position, character) in line.char_indices() {
            match character {
                '\0' => return Err(CmdlineError::Nul { position }),
                ' '..='~' | '\t' | '\n' => {}
                _ => return Err(CmdlineError::Character { character, position }),
            }
        }
        Ok(Self(line.to_owned()))
    }

    /// The line, without a final NUL.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The line as it lies in guest memory: with its final NUL.
    pub(crate) fn to_bytes_with_nul(&self) -> Vec<u8> {
        let mut bytes = self.0.clone().into_bytes();
        bytes.push(0);
        bytes
    }
}

impl fmt::Display for Cmdline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no command line. Positions count bytes from 0.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CmdlineError {
    /// More bytes than the kernel reads.
    #[error("the command line has {length} bytes; the kernel takes at most {limit}")]
    TooLong {
        /// Bytes of the line.
        length: usize,
        /// The most that is allowed.
        limit: usize,
    },
    /// A NUL, where the kernel would stop reading.
    #[error("the command line has a NUL at byte {position}; the kernel would end it there")]
    Nul {
        /// Where.
        position: usize,
    },
    /// A control character, or one beyond ASCII.
    #[error(
        "the command line has the character {character:?} at byte {position}; \
         only printable ASCII, tab and newline are allowed"
    )]
    Character {
        /// The first character that is not allowed.
        character: char,
        /// Where.
        position: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_linux_takes() {
        let line = "console=ttyS0\tpanic=-1\nroot=\"/dev/vda 1\" ~";
        assert_eq!(Cmdline::new(line).unwrap().as_str(), line);
        assert_eq!(Cmdline::new("").unwrap().to_bytes_with_nul(), b"\0");
        let longest = "x".repeat(2047);
        assert_eq!(Cmdline::new(&longest).unwrap().to_bytes_with_nul().len(), 2048);
    }

    #[test]
    fn refuses_with_the_position() {
        assert_eq!(
            Cmdline::new(&"x".repeat(2048)),
            Err(CmdlineError::TooLong { length: 2048, limit: 2047 })
        );
        assert_eq!(Cmdline::new("ab\0c"), Err(CmdlineError::Nul { position: 2 }));
        for (line, character) in [("a\x1bb", '\x1b'), ("a\x7f", '\x7f'), ("aé", 'é'), ("a\r", '\r')]
        {
            assert_eq!(
                Cmdline::new(line),
                Err(CmdlineError::Character { character, position: 1 }),
                "{line:?}"
            );
        }
    }
}
