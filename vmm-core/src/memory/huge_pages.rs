use std::fmt;
use std::fs;
use std::path::PathBuf;

use super::{MemoryError, MemorySize};

/// A size of huge pages that x86-64 has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HugePageSize {
    /// 2 MiB.
    TwoMib,
    /// 1 GiB, on processors with `pdpe1gb`.
    OneGib,
}

impl HugePageSize {
    /// The size in bytes.
    #[must_use]
    pub const fn as_bytes(self) -> u64 {
        match self {
            Self::TwoMib => 2 << 20,
            Self::OneGib => 1 << 30,
        }
    }

    pub(super) fn mmap_flags(self) -> libc::c_int {
        libc::MAP_HUGETLB
            | match self {
                Self::TwoMib => libc::MAP_HUGE_2MB,
                Self::OneGib => libc::MAP_HUGE_1GB,
            }
    }

    pub(super) fn memfd_flags(self) -> libc::c_uint {
        libc::MFD_HUGETLB
            | match self {
                Self::TwoMib => libc::MFD_HUGE_2MB,
                Self::OneGib => libc::MFD_HUGE_1GB,
            }
    }

    /// The host's pool of such pages.
    pub(super) fn pool(self) -> PathBuf {
        format!("/sys/kernel/mm/hugepages/hugepages-{}kB", self.as_bytes() >> 10).into()
    }

    /// How else a pool gets `target` pages.
    pub(super) fn other_way(self, target: u64) -> String {
        match self {
            Self::TwoMib => {
                format!(" or, where 2 MiB is the default, `sysctl vm.nr_hugepages={target}`")
            }
            Self::OneGib => format!(
                "; a host that has been up for long may not find whole GiB any more: then boot it with \
                 `hugepagesz=1G hugepages={target}`"
            ),
        }
    }

    /// Why the pool did not give `bytes`.
    pub(super) fn lacking(self, bytes: u64) -> MemoryError {
        let pool = self.pool();
        let number = |name: &str| {
            let text = fs::read_to_string(pool.join(name)).ok()?;
            text.trim().parse::<u64>().ok()
        };
        let Some(free) = number("free_hugepages") else {
            return MemoryError::HugePageSize { size: self, pool };
        };
        // What others have mapped and not touched yet is free, and yet theirs.
        let free = free.saturating_sub(number("resv_hugepages").unwrap_or(0));
        let needed = bytes.div_ceil(self.as_bytes());
        let present = number("nr_hugepages").unwrap_or(0);
        let target = present.saturating_add(needed.saturating_sub(free));
        MemoryError::HugePages { size: self, needed, free, target, pool }
    }
}

impl fmt::Display for HugePageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        MemorySize::bytes(self.as_bytes()).fmt(f)
    }
}
