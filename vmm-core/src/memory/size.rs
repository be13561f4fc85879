use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// How much memory a guest has.
///
/// Any number of bytes can be said; [`VmBuilder::build`](crate::VmBuilder::build) accepts from
/// [`MIN`](Self::MIN) to [`MAX`](Self::MAX) in whole pages of 4 KiB. Unless
/// [`MemoryBacking`](crate::MemoryBacking) says otherwise, host memory is taken only as the guest
/// touches it.
///
/// ```
/// use sparkler::MemorySize;
/// assert_eq!("1G".parse::<MemorySize>()?, MemorySize::mib(1024));
/// assert_eq!(MemorySize::mib(1536).to_string(), "1536 MiB");
/// # Ok::<(), sparkler::ParseMemorySizeError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemorySize(u64);

impl MemorySize {
    /// The least that a machine can have: 4 MiB.
    pub const MIN: Self = Self::mib(4);
    /// The most that a machine can have: 4 TiB. The host's physical address width may set a lower limit.
    pub const MAX: Self = Self::gib(4096);

    /// This many bytes.
    #[must_use]
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many times 1024 bytes; `u64::MAX` bytes if that overflows.
    #[must_use]
    pub const fn kib(kib: u64) -> Self {
        Self(kib.saturating_mul(1 << 10))
    }

    /// This many times 1024² bytes; `u64::MAX` bytes if that overflows.
    #[must_use]
    pub const fn mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// This many times 1024³ bytes; `u64::MAX` bytes if that overflows.
    #[must_use]
    pub const fn gib(gib: u64) -> Self {
        Self(gib.saturating_mul(1 << 30))
    }

    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
        let unit = units.iter().find(|(unit, _)| self.0 != 0 && self.0.is_multiple_of(*unit));
        match unit {
            Some((unit, name)) => write!(f, "{} {name}", self.0 / unit),
            None => write!(f, "{} bytes", self.0),
        }
    }
}

/// A text is no [`MemorySize`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ParseMemorySizeError {
    /// It is not a whole number with an optional unit.
    #[error("{0:?} is no memory size: write a whole number with K, M, G or T, such as 256M")]
    Malformed(String),
    /// The number of bytes does not fit in 64 bits.
    #[error("{0:?} is too large for a memory size")]
    TooLarge(String),
}

impl FromStr for MemorySize {
    type Err = ParseMemorySizeError;

    /// A whole number and a unit: `K`, `M`, `G` or `T` (powers of 1024), also written `MiB` or `MB`, in
    /// either case, or `B`. A bare number counts MiB, as with the peers' `-m`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "b" => 0,
            "k" | "kb" | "kib" => 10,
            "" | "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(ParseMemorySizeError::Malformed(text.to_owned())),
        };
        if number.is_empty() {
            return Err(ParseMemorySizeError::Malformed(text.to_owned()));
        }
        number
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(1 << shift))
            .map(Self)
            .ok_or_else(|| ParseMemorySizeError::TooLarge(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_what_people_write() {
        let cases = [("256M", 256 << 20), ("256", 256 << 20), ("1G", 1 << 30), ("1GiB", 1 << 30)];
        let more =
            [("4096k", 4 << 20), ("2 gb", 2 << 30), ("512B", 512), ("1T", 1 << 40), ("0", 0)];
        for (text, bytes) in cases.into_iter().chain(more) {
            assert_eq!(text.parse(), Ok(MemorySize(bytes)), "{text}");
        }
        for text in ["", "M", "abc", "-1", "+1", "1.5G", "1X", "0x10", "1 0", "１"] {
            let malformed = ParseMemorySizeError::Malformed(text.to_owned());
            assert_eq!(text.parse::<MemorySize>(), Err(malformed), "{text}");
        }
        for text in ["99999999999999999999", "99999999999T"] {
            let too_large = ParseMemorySizeError::TooLarge(text.to_owned());
            assert_eq!(text.parse::<MemorySize>(), Err(too_large), "{text}");
        }
    }
}
