//! The loader seen from outside: images in, guest memory out.

#![allow(
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a failure here is a failed test; the exemption for tests misses their helpers"
)]

mod boot_info;
mod bzimage;
#[cfg(feature = "kernel-cache")]
mod cached;
mod elf;
mod given_up;
mod images;
mod mapped;
mod support;
