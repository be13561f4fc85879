//! Threads of the binary's own.

use std::io;
use std::thread::{Builder, JoinHandle};

use sparkler::THREAD_STACK_SIZE;

/// Starts a thread with as small a stack as the machine's threads have.
pub(crate) fn spawn<T: Send + 'static>(
    name: &str,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    Builder::new().name(name.to_owned()).stack_size(THREAD_STACK_SIZE).spawn(act)
}
