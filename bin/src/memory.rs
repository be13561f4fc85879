//! `--memory SIZE[,hugepages=2M]…`: parsed here; a file is opened when the machine is built.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;

use sparkler::{HugePageSize, MemoryBacking, MemorySize, ParseMemorySizeError};
use thiserror::Error;

use crate::options::split;

/// Memory as the command line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MemoryArg {
    size: MemorySize,
    huge_pages: Option<HugePageSize>,
    transparent_huge_pages: Option<bool>,
    prefault: bool,
    shared: bool,
    file: Option<PathBuf>,
}

/// The file for guest memory cannot be opened.
#[derive(Debug, Error)]
#[error("cannot open {} for guest memory", path.display())]
pub(crate) struct OpenError {
    path: PathBuf,
    source: io::Error,
}

impl MemoryArg {
    pub(crate) fn size(&self) -> MemorySize {
        self.size
    }

    pub(crate) fn backing(&self) -> Result<MemoryBacking, OpenError> {
        let mut backing = match &self.file {
            None if self.shared => MemoryBacking::memfd(),
            None => MemoryBacking::private(),
            Some(path) => {
                let file = File::options().read(true).write(true).open(path);
                let file = file.map_err(|source| OpenError { path: path.clone(), source })?;
                MemoryBacking::file(file.into(), 0)
            }
        };
        if let Some(size) = self.huge_pages {
            backing = backing.huge_pages(size);
        }
        if let Some(on) = self.transparent_huge_pages {
            backing = backing.transparent_huge_pages(on);
        }
        Ok(backing.prefault(self.prefault))
    }
}

/// What is wrong with the text after `--memory`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum MemoryArgError {
    #[error(transparent)]
    Size(#[from] ParseMemorySizeError),
    #[error(
        "no option {0:?}; there are hugepages=2M, hugepages=1G, thp=on, thp=off, prefault, shared, \
         file=PATH"
    )]
    Option(String),
    #[error("shared and file=PATH exclude each other: a file is shared anyway")]
    SharedFile,
}

impl FromStr for MemoryArg {
    type Err = MemoryArgError;

    /// A comma in the path is written twice.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = split(text).into_iter();
        let size = parts.next().unwrap_or_default().parse()?;
        let mut memory = Self {
            size,
            huge_pages: None,
            transparent_huge_pages: None,
            prefault: false,
            shared: false,
            file: None,
        };
        for part in parts {
            match part.as_str() {
                "hugepages=2M" => memory.huge_pages = Some(HugePageSize::TwoMib),
                "hugepages=1G" => memory.huge_pages = Some(HugePageSize::OneGib),
                "thp=on" => memory.transparent_huge_pages = Some(true),
                "thp=off" => memory.transparent_huge_pages = Some(false),
                "prefault" => memory.prefault = true,
                "shared" => memory.shared = true,
                _ => match part.strip_prefix("file=").filter(|path| !path.is_empty()) {
                    Some(path) => memory.file = Some(path.into()),
                    None => return Err(MemoryArgError::Option(part)),
                },
            }
        }
        if memory.shared && memory.file.is_some() {
            return Err(MemoryArgError::SharedFile);
        }
        Ok(memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_alone_or_with_options_in_any_order() {
        let plain: MemoryArg = "1G".parse().unwrap();
        let nothing = MemoryArg {
            size: MemorySize::gib(1),
            huge_pages: None,
            transparent_huge_pages: None,
            prefault: false,
            shared: false,
            file: None,
        };
        assert_eq!(plain, nothing);
        let full: MemoryArg = "512,prefault,thp=off,shared,hugepages=1G".parse().unwrap();
        let expected = MemoryArg {
            size: MemorySize::mib(512),
            huge_pages: Some(HugePageSize::OneGib),
            transparent_huge_pages: Some(false),
            prefault: true,
            shared: true,
            file: None,
        };
        assert_eq!(full, expected);
        let file: MemoryArg = "4M,file=a,,b".parse().unwrap();
        assert_eq!(file.file, Some("a,b".into()));
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<MemoryArg>().unwrap_err();
        assert!(matches!(error(""), MemoryArgError::Size(_)));
        assert!(matches!(error("prefault"), MemoryArgError::Size(_)));
        for option in ["", "hugepages", "hugepages=4M", "thp", "file=", "prefault=on"] {
            assert_eq!(error(&format!("1G,{option}")), MemoryArgError::Option(option.into()));
        }
        assert_eq!(error("1G,shared,file=x"), MemoryArgError::SharedFile);
    }
}
