//! The limit on the size of files (`RLIMIT_FSIZE`): a test of its own, since the limit is the process's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// A failed unwrap is a failed test.

mod block_common;

use block_common::*;
use sparkler_devices::virtio::block::EngineKind;

fn limit(bytes: u64) {
    let max = libc::RLIM_INFINITY;
    // SAFETY: the struct is read by the kernel and lives until then.
    let result = unsafe {
        libc::setrlimit(libc::RLIMIT_FSIZE, &libc::rlimit { rlim_cur: bytes, rlim_max: max })
    };
    assert_eq!(result, 0);
}

/// Whoever writes beyond the limit gets SIGXFSZ, which ends the process unless it is blocked.
#[test]
fn writing_beyond_the_limit_is_the_guests_io_error_and_passes() {
    for kind in [EngineKind::Sync, EngineKind::Auto] {
        let image = Image::of_size(1 << 20);
        let mut guest = Guest::new(image.disk().engine(kind).unwrap());
        limit(512 << 10);
        assert_eq!(guest.write(0, &[1; 4096]), OK);
        for _ in 0..3 {
            assert_eq!(guest.write(1024, &[2; 4096]), IOERR);
        }
        // Half of it fits: the rest is missing, so it has failed.
        assert_eq!(guest.write(1020, &[3; 4096]), IOERR);
        assert_eq!(guest.read(1024, 512).data, [0; 512]);
        limit(libc::RLIM_INFINITY);
        assert_eq!(guest.write(1024, &[4; 4096]), OK);
        assert_eq!(guest.read(1024, 4096).data, [4; 4096]);
    }
}
