//! The command line: words separated by white space, the last one wins, unknown ones are ignored.

use crate::exit_code::BAD_COMMAND_LINE;

/// A command line, as it was given.
#[derive(Clone, Copy)]
pub(crate) struct Cmdline<'a>(&'a [u8]);

impl<'a> Cmdline<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn words(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
    }

    /// Whether the word `name` is there.
    pub(crate) fn has(&self, name: &[u8]) -> bool {
        self.words().any(|word| word == name)
    }

    /// The values of all words `key=value`, in order.
    pub(crate) fn values<'k>(&self, key: &'k [u8]) -> impl Iterator<Item = &'a [u8]> + use<'a, 'k> {
        self.words().filter_map(move |word| word.strip_prefix(key)?.strip_prefix(b"="))
    }

    /// The value of the last word `key=value`.
    pub(crate) fn value(&self, key: &[u8]) -> Option<&'a [u8]> {
        self.values(key).last()
    }

    /// The number in the last word `key=number`.
    pub(crate) fn number(&self, key: &[u8]) -> Result<Option<u64>, u8> {
        self.value(key).map(number).transpose()
    }
}

/// Reads a number: decimal, or hexadecimal after `0x`.
pub(crate) fn number(text: &[u8]) -> Result<u64, u8> {
    let (digits, base) = match text.strip_prefix(b"0x") {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    if digits.is_empty() {
        return Err(BAD_COMMAND_LINE);
    }
    digits.iter().try_fold(0u64, |value, &byte| {
        let digit = (byte as char).to_digit(base).ok_or(BAD_COMMAND_LINE)?;
        value
            .checked_mul(u64::from(base))
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(BAD_COMMAND_LINE)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_words_and_values() {
        let cmdline = Cmdline::new(b" quiet  test=hello\tmark=3 test=vcpus mark=4\n");
        assert!(cmdline.has(b"quiet"));
        assert!(!cmdline.has(b"quie"));
        assert_eq!(cmdline.value(b"test"), Some(&b"vcpus"[..]));
        assert_eq!(cmdline.value(b"tes"), None);
        assert_eq!(cmdline.values(b"mark").collect::<Vec<_>>(), [b"3", b"4"]);
        assert_eq!(Cmdline::new(b"").value(b"test"), None);
    }

    #[test]
    fn reads_numbers() {
        assert_eq!(number(b"18446744073709551615"), Ok(u64::MAX));
        assert_eq!(number(b"0xfee00000"), Ok(0xfee0_0000));
        for bad in [&b""[..], b"0x", b"-1", b"12M", b"18446744073709551616", b"a"] {
            assert_eq!(number(bad), Err(BAD_COMMAND_LINE), "{bad:?}");
        }
        assert_eq!(Cmdline::new(b"code=x").number(b"code"), Err(BAD_COMMAND_LINE));
        assert_eq!(Cmdline::new(b"code=7").number(b"code"), Ok(Some(7)));
        assert_eq!(Cmdline::new(b"").number(b"code"), Ok(None));
    }
}
