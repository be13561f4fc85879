use std::collections::BTreeSet;
use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use thiserror::Error;

/// A set of the host's CPUs, by their numbers in `/proc/cpuinfo`.
///
/// ```
/// use sparkler::CpuSet;
/// let cpus: CpuSet = "0-2,8".parse()?;
/// assert_eq!(cpus, CpuSet::from_iter([8, 2, 1, 0]));
/// assert_eq!(cpus.to_string(), "0-2,8");
/// # Ok::<(), sparkler::ParseCpuSetError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct CpuSet(BTreeSet<u32>);

impl CpuSet {
    /// The highest number that Linux has for a CPU on x86-64. Higher ones are not kept.
    pub const MAX: u32 = 8191;

    /// The CPUs in it, in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }

    /// Whether there is none in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether all of them are in `other`, too.
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.0.is_subset(&other.0)
    }
}

impl FromIterator<u32> for CpuSet {
    fn from_iter<T: IntoIterator<Item = u32>>(cpus: T) -> Self {
        Self(cpus.into_iter().filter(|&cpu| cpu <= Self::MAX).collect())
    }
}

impl fmt::Display for CpuSet {
    /// As the kernel writes such lists: `0-2,8`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut runs: Vec<(u32, u32)> = Vec::new();
        for cpu in self.iter() {
            match runs.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(cpu) => *last = cpu,
                _ => runs.push((cpu, cpu)),
            }
        }
        for (index, (first, last)) in runs.into_iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            match first == last {
                true => write!(f, "{comma}{first}")?,
                false => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

/// A text is no [`CpuSet`].
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no set of CPUs: write numbers up to 8191 and ranges, such as 0-2,8")]
pub struct ParseCpuSetError(String);

impl FromStr for CpuSet {
    type Err = ParseCpuSetError;

    /// Numbers and ranges, with commas between.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let ranges = text.split(',').map(range).collect::<Option<Vec<_>>>();
        let ranges = ranges.ok_or_else(|| ParseCpuSetError(text.to_owned()))?;
        Ok(ranges.into_iter().flatten().collect())
    }
}

fn range(text: &str) -> Option<RangeInclusive<u32>> {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|&cpu: &u32| digits && cpu <= CpuSet::MAX)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let range = number(first)?..=number(last)?;
    (!range.is_empty()).then_some(range)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_as_the_kernel_does() {
        for (text, cpus, written) in [
            ("0", vec![0], "0"),
            ("3,1,2", vec![1, 2, 3], "1-3"),
            ("0-3,8191,10-10", vec![0, 1, 2, 3, 10, 8191], "0-3,10,8191"),
        ] {
            let set: CpuSet = text.parse().unwrap();
            assert_eq!(set.iter().collect::<Vec<_>>(), cpus);
            assert_eq!(set.to_string(), written);
        }
        for text in ["", ",", "1,", "a", "-1", "1-", "3-1", "8192", "+1", " 1", "0-99999999999"] {
            assert_eq!(text.parse::<CpuSet>(), Err(ParseCpuSetError(text.to_owned())), "{text}");
        }
        assert!(CpuSet::from_iter([u32::MAX]).is_empty());
    }
}
