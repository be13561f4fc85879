//! What the benches share.

pub mod floor;
mod large_kernel;

pub use large_kernel::large_kernel;
