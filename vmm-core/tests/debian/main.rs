//! A stock, unmodified Linux kernel with a Debian root file system on its first disk.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

#[path = "../common/mod.rs"]
mod common;
mod guest;
mod many_disks;
mod power_loss;
mod root;
mod verify;
