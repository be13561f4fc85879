//! What depends on the processor architecture. One folder each; so far, one.

#[cfg(not(target_arch = "x86_64"))]
compile_error!("sparkler runs on x86-64 hosts only, so far");

pub(crate) mod x86_64;
