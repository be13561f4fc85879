//! The few system calls that no crate in our tree wraps, each behind a safe function.

pub(crate) mod kernel_pages;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod scheduler;
pub(crate) mod signal;
pub(crate) mod wake;
