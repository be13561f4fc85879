//! A process that may have no signal pending. One test: it changes a limit of the whole process.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::time::Instant;

use crate::common::guest;

#[test]
#[ignore = "needs /dev/kvm"]
fn machines_stop_all_the_same() {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` is initialized, and the call touches nothing but the limit.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_SIGPENDING, &none) }, 0);
    for vcpus in [1, 4] {
        let running = guest("test=hang").vcpus(vcpus).build().unwrap().start().unwrap();
        let limit = common::drop_limit();
        let begin = Instant::now();
        drop(running);
        assert!(begin.elapsed() < limit, "{:?}", begin.elapsed());
    }
}
