//! A directory as what Linux takes for an initrd: a cpio archive of the kind `newc`.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;

/// Owned by root, one entry after another; of two with the same name the later one counts.
#[derive(Default)]
pub(crate) struct Archive(Vec<u8>);

impl Archive {
    /// All folders, files and symbolic links below `root`; what else there is, is left out.
    pub(crate) fn tree(&mut self, root: &Path) -> io::Result<()> {
        self.below(root, Path::new(""))
    }

    fn below(&mut self, root: &Path, folder: &Path) -> io::Result<()> {
        for entry in fs::read_dir(root.join(folder))? {
            let entry = entry?;
            let (path, name) = (entry.path(), folder.join(entry.file_name()));
            let metadata = entry.metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_dir() {
                self.entry(name.as_os_str().as_bytes(), FOLDER | mode, &[])?;
                self.below(root, &name)?;
            } else if metadata.is_symlink() {
                let target = fs::read_link(path)?;
                self.entry(
                    name.as_os_str().as_bytes(),
                    LINK | 0o777,
                    target.as_os_str().as_bytes(),
                )?;
            } else if metadata.is_file() {
                self.entry(name.as_os_str().as_bytes(), FILE | mode, &fs::read(path)?)?;
            }
        }
        Ok(())
    }

    pub(crate) fn folder(&mut self, name: &str) -> io::Result<()> {
        self.entry(name.as_bytes(), FOLDER | 0o755, &[])
    }

    pub(crate) fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> io::Result<()> {
        self.entry(path.trim_start_matches('/').as_bytes(), FILE | mode, content)
    }

    pub(crate) fn finish(mut self) -> io::Result<Vec<u8>> {
        self.entry(b"TRAILER!!!", 0, &[])?;
        Ok(self.0)
    }

    fn entry(&mut self, name: &[u8], mode: u32, content: &[u8]) -> io::Result<()> {
        let size = u32::try_from(content.len()).map_err(io::Error::other)?;
        let name_size = u32::try_from(name.len() + 1).map_err(io::Error::other)?;
        // Number, mode, owner, group, links, time, size, four numbers of devices, name's size, checksum.
        let fields = [0, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.0.extend_from_slice(b"070701");
        for field in fields {
            self.0.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.0.extend_from_slice(name);
        self.0.push(0);
        self.pad();
        self.0.extend_from_slice(content);
        self.pad();
        Ok(())
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }
}
