//! Where [`control`](crate::control) has its locks from: a test that tries out the interleavings of threads
//! (`tests/control_model.rs`) compiles that file with others in their place.

pub(crate) use std::sync::atomic::{AtomicBool, Ordering};
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
