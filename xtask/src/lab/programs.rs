//! Programs of this host for the lab, which has no shared libraries of its own.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use super::Shared;
use crate::setup;

/// These programs and the libraries that they are linked with, each at its place on this host.
pub(crate) fn with_libraries(programs: &[&str]) -> Result<Vec<Shared>> {
    let mut files = BTreeSet::new();
    for program in programs {
        let file = setup::find_program(program).with_context(|| format!("no {program}"))?;
        let output = Command::new("ldd").arg(&file).output().context("cannot run ldd")?;
        files.extend(parse_libraries(&String::from_utf8_lossy(&output.stdout)));
        files.insert(file);
    }
    Ok(files.into_iter().map(|file| Shared { host: file.clone(), guest: file }).collect())
}

/// Every path in what `ldd` says: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn parse_libraries(text: &str) -> impl Iterator<Item = PathBuf> {
    let paths = text.lines().filter_map(|line| {
        let line = line.split_once(" => ").map_or(line, |(_, path)| path);
        line.split_whitespace().next().filter(|path| path.starts_with('/'))
    });
    paths.map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_library_has_no_file() {
        let text = "\tlinux-vdso.so.1 (0x00007f)\n\tlibc.so.6 => /lib/libc.so.6 (0x00007f)\n\t/lib64/ld.so.2 (0x7f)\n";
        let found: Vec<_> = parse_libraries(text).collect();
        assert_eq!(found, [PathBuf::from("/lib/libc.so.6"), PathBuf::from("/lib64/ld.so.2")]);
        assert_eq!(parse_libraries("\tnot a dynamic executable\n").count(), 0);
    }
}
