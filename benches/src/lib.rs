//! What the benches share.

pub mod counters;
pub mod floor;
pub mod jobs;
mod large_kernel;
pub mod linux_machine;
pub mod samples;
pub mod turns;

pub use large_kernel::{LARGE_KERNEL_ADDRESS, LARGE_KERNEL_PAYLOAD, large_kernel};

/// The lines in the workspace's README compile. Here, because a published package has no such file.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct WorkspaceReadme;
