//! The lock that keeps two users from changing one disk, the same as QEMU's.
//!
//! QEMU shares images by locks on single bytes of the file (its `block/file-posix.c`): byte 100 + P
//! is locked by whoever uses permission P, byte 200 + P by whoever does not let others use it. All of
//! these are shared locks; each user then looks for locks of others that contradict. The same bytes
//! here make QEMU and this device respect each other. The locks belong to the open file description
//! (`F_OFD_SETLK`), so two disks of one process exclude each other too.

use std::fs::File;
use std::io;

use super::sys;

/// First byte of the permissions in use.
const USED: i64 = 100;
/// First byte of the permissions that others must not use.
const DENIED: i64 = 200;
/// All bytes of both.
const ALL: i64 = 200;

/// Bits of QEMU's `BLK_PERM_*`.
const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// Locks `file` for one writer alone, or for any number of readers and no writer. `Ok(false)` if it is
/// in use otherwise.
pub(super) fn try_lock(file: &File, writable: bool) -> io::Result<bool> {
    if writable {
        return sys::try_lock(file, USED, ALL, true);
    }
    for byte in [USED + CONSISTENT_READ, DENIED + WRITE, DENIED + RESIZE] {
        if !sys::try_lock(file, byte, 1, false)? {
            return Ok(false);
        }
    }
    // Locked first, looked second: of a reader and a writer that come at once, one at least sees the other.
    Ok(sys::is_unlocked(file, USED + WRITE, 1)? && sys::is_unlocked(file, USED + RESIZE, 1)?)
}

/// Lets go of the lock. Closing the file would do the same, but not before the last copy of its
/// descriptor is closed: one that a `fork` elsewhere in the process made, or that the kernel still has.
pub(super) fn unlock(file: &File) {
    // It cannot fail on a file that could be locked, and if it did, closing is left.
    let _ = sys::unlock(file, USED, ALL);
}
