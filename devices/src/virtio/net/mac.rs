use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::str::FromStr;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;

/// The address of a network card: of one card, never of a group.
///
/// ```
/// use sparkler_devices::virtio::net::MacAddress;
///
/// let mac: MacAddress = "02:00:00:12:34:56".parse()?;
/// assert_eq!(mac.bytes(), [0x02, 0, 0, 0x12, 0x34, 0x56]);
/// assert_eq!(mac.to_string(), "02:00:00:12:34:56");
/// # Ok::<(), sparkler_devices::virtio::net::MacAddressError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddress([u8; 6]);

/// What was given is not the address of a network card.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{given:?} is no address of a network card: six bytes as in 02:00:00:12:34:56, the first one \
     even, not all zero"
)]
pub struct MacAddressError {
    given: String,
}

/// The bit that says "a group", and the one that says "locally administered".
const GROUP: u8 = 1;
const LOCAL: u8 = 2;
/// Told apart by this bit: addresses that belong to a name have it, random ones do not.
const NAMED: u8 = 4;

impl MacAddress {
    /// The address of these bytes, as they are sent.
    ///
    /// # Errors
    /// [`MacAddressError`] if it is the address of a group or all zero.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacAddressError> {
        let [first, ..] = bytes;
        if first & GROUP != 0 || bytes == [0; 6] {
            return Err(MacAddressError { given: Unchecked(bytes).to_string() });
        }
        Ok(Self(bytes))
    }

    /// A locally administered address that no other call in this process returns, and that is unlikely
    /// to exist elsewhere.
    #[must_use]
    pub fn random() -> Self {
        /// Random from process to process; the addresses of one process count up from here.
        static BASE: LazyLock<u64> = LazyLock::new(|| RandomState::new().build_hasher().finish());
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let value = BASE.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed));
        Self::local(value, 0)
    }

    /// The locally administered address that belongs to a name, for example that of a virtual machine:
    /// always the same for the same name. It differs from every [`random`](Self::random) one.
    #[must_use]
    pub fn for_name(name: &str) -> Self {
        // FNV-1a. The standard library's hash may change with the compiler.
        let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        // Its upper bits vary more than the lower ones.
        Self::local(hash ^ hash >> 32, NAMED)
    }

    /// Its bytes, as they are sent.
    #[must_use]
    pub const fn bytes(self) -> [u8; 6] {
        self.0
    }

    /// The address with 40 bits of `value`.
    fn local(value: u64, kind: u8) -> Self {
        let [a, b, c, d, e, ..] = value.to_le_bytes();
        Self([LOCAL | kind, e, d, c, b, a])
    }
}

struct Unchecked([u8; 6]);

impl fmt::Display for Unchecked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Unchecked(self.0).fmt(f)
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    /// Six bytes of one or two hexadecimal digits, with colons between them.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let error = || MacAddressError { given: text.to_owned() };
        let mut parts = text.split(':');
        let mut bytes = [0; 6];
        for byte in &mut bytes {
            let part = parts.next().ok_or_else(error)?;
            let digits = part.len() <= 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u8::from_str_radix(part, 16).ok().filter(|_| digits);
            *byte = value.ok_or_else(error)?;
        }
        match parts.next() {
            None => Self::new(bytes).map_err(|_| error()),
            Some(_) => Err(error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn text_that_is_no_address_is_refused() {
        for text in [
            "",
            "02",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:100",
            "02-00-00-00-00-01",
            "+2:00:00:00:00:01",
            "02:00:00:00:00:",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
            "00:00:00:00:00:00",
            " 02:00:00:00:00:01",
            "0g:00:00:00:00:01",
        ] {
            let error = text.parse::<MacAddress>().expect_err(text);
            assert!(error.to_string().contains(&format!("{text:?}")), "{error}");
        }
        assert_eq!("2:0:0:0:A:b".parse::<MacAddress>().unwrap().bytes(), [2, 0, 0, 0, 10, 11]);
    }

    #[test]
    fn random_addresses_differ_from_each_other_and_from_named_ones() {
        let addresses: HashSet<_> = (0..10_000).map(|_| MacAddress::random()).collect();
        assert_eq!(addresses.len(), 10_000);
        for address in addresses {
            let [first, ..] = address.bytes();
            assert_eq!(first & (GROUP | LOCAL | NAMED), LOCAL);
            assert_eq!(MacAddress::new(address.bytes()), Ok(address));
        }
    }

    #[test]
    fn a_name_always_has_the_same_address() {
        assert_eq!(
            MacAddress::for_name("web-1").to_string(),
            MacAddress::for_name("web-1").to_string()
        );
        assert_eq!(MacAddress::for_name("").to_string(), "06:e4:4f:d0:bf:c1");
        let names: HashSet<_> =
            (0..10_000).map(|n| MacAddress::for_name(&format!("vm{n}"))).collect();
        assert_eq!(names.len(), 10_000);
    }
}
