//! The kernel modules that the initrd carries.

use anyhow::{Context, Result};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fs::{self, File};

/// Their names begin with a number: what one needs comes before it.
const FOLDER: &str = "/modules";

/// Loads all of them in the order of their names. An initrd without any is fine.
pub(crate) fn load() -> Result<()> {
    let Ok(entries) = fs::read_dir(FOLDER) else { return Ok(()) };
    let mut names = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect::<Result<Vec<OsString>, _>>()?;
    names.sort();
    for name in names {
        let file = File::open(format!("{FOLDER}/{}", name.display()))?;
        match rustix::system::finit_module(&file, c"", 0) {
            // Loaded before, by another init of the same guest.
            Ok(()) | Err(Errno::EXIST) => {}
            // A kernel without modules has what it needs built in.
            Err(Errno::NOSYS) => return Ok(()),
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("cannot load the module {}", name.display()));
            }
        }
    }
    Ok(())
}
