//! Disks by what they say of themselves.

use anyhow::Result;
use std::fs;
use std::path::PathBuf;

/// The device of the disk with this serial number, if there is one.
pub(crate) fn by_serial(serial: &str) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir("/sys/block")? {
        let entry = entry?;
        // Only virtio disks have the file.
        let found = fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
        if found.trim_end() == serial {
            return Ok(Some(PathBuf::from("/dev").join(entry.file_name())));
        }
    }
    Ok(None)
}
