//! The keys that are for `sparkler` itself among those typed for the guest.
//!
//! Ctrl-A begins a command, as in GNU screen and in QEMU. This is a state machine over single bytes, so a command may be
//! split over any number of reads.

/// The byte that a terminal sends for Ctrl-A.
const PREFIX: u8 = 0x01;

/// What Ctrl-A `h` prints. Lines end in `\r\n`, as the terminal is raw then.
pub(crate) const HELP: &str = "\r\n\
    Ctrl-A x       end the machine\r\n\
    Ctrl-A Ctrl-A  send one Ctrl-A to the guest\r\n\
    Ctrl-A h       this help\r\n";

/// What one typed byte means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Key {
    /// Goes to the guest.
    Guest(u8),
    /// Was a prefix, or an unknown command: nobody gets it.
    Nothing,
    /// Print [`HELP`].
    Help,
    /// End the machine.
    End,
}

/// Whether the last byte was the prefix.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    pending: bool,
}

impl Escape {
    /// Takes the next typed byte.
    pub(crate) fn feed(&mut self, byte: u8) -> Key {
        if !self.pending {
            self.pending = byte == PREFIX;
            return if self.pending { Key::Nothing } else { Key::Guest(byte) };
        }
        self.pending = false;
        match byte {
            PREFIX => Key::Guest(PREFIX),
            b'x' | b'X' => Key::End,
            b'h' | b'H' | b'?' => Key::Help,
            _ => Key::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed_all(bytes: &[u8]) -> Vec<Key> {
        let mut escape = Escape::default();
        bytes.iter().map(|&b| escape.feed(b)).filter(|k| *k != Key::Nothing).collect()
    }

    fn guest(bytes: &[u8]) -> Vec<Key> {
        bytes.iter().map(|&b| Key::Guest(b)).collect()
    }

    #[test]
    fn every_byte_but_the_prefix_goes_to_the_guest() {
        let all: Vec<u8> = (0..=255).filter(|&b| b != PREFIX).collect();
        assert_eq!(feed_all(&all), guest(&all));
    }

    #[test]
    fn the_prefix_twice_is_the_prefix_once() {
        assert_eq!(feed_all(b"a\x01\x01b"), guest(b"a\x01b"));
        assert_eq!(feed_all(b"\x01\x01\x01\x01"), guest(b"\x01\x01"));
        assert_eq!(feed_all(b"\x01\x01x"), guest(b"\x01x"));
    }

    #[test]
    fn commands_are_recognised_in_either_case() {
        assert_eq!(feed_all(b"\x01x"), [Key::End]);
        assert_eq!(feed_all(b"\x01X"), [Key::End]);
        assert_eq!(feed_all(b"\x01h"), [Key::Help]);
        assert_eq!(feed_all(b"\x01?"), [Key::Help]);
        assert_eq!(feed_all(b"x\x01xx"), [Key::Guest(b'x'), Key::End, Key::Guest(b'x')]);
    }

    #[test]
    fn an_unknown_command_vanishes_whole() {
        assert_eq!(feed_all(b"a\x01qb"), guest(b"ab"));
    }
}
