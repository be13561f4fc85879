//! A stock, unmodified Linux on a network, with this process on the other side of a tap.
//!
//! Each test has a network namespace of its own, so it changes nothing of its host's networks.
//! `SPARKLER_THOROUGH` makes them send much more.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

#[path = "../common/mod.rs"]
mod common;
#[allow(dead_code)] // Shared with the tests of disks.
#[path = "../debian/guest.rs"]
mod guest;
mod host;
mod http;
mod machine;

mod away;
mod bulk;
mod checksums;
mod queues;
mod vhost;

/// `much` if there is time for it, by `SPARKLER_THOROUGH`.
fn amount(usual: u64, much: u64) -> u64 {
    if std::env::var_os("SPARKLER_THOROUGH").is_some() { much } else { usual }
}
