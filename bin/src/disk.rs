//! `--disk PATH[,ro][,serial=…]…`: parsed here, opened when the machine is built.

use std::path::PathBuf;
use std::str::FromStr;

use sparkler::virtio::block::{Disk, DiskError, MAX_QUEUES, RateLimit};
use thiserror::Error;

use crate::options::{BadValue, at_least_one, bytes, number, ranged, split};
use crate::{disk_format, report};

/// A disk as the command line says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DiskArg {
    path: PathBuf,
    read_only: bool,
    direct: bool,
    serial: Option<String>,
    queues: u16,
    iops: u64,
    bytes_per_second: u64,
}

impl DiskArg {
    pub(crate) fn open(&self) -> Result<Disk, DiskError> {
        if let Some(doubt) = disk_format::doubt(&self.path) {
            report::complain(&doubt);
        }
        let disk = match self.read_only {
            true => Disk::open_read_only(&self.path),
            false => Disk::open(&self.path),
        };
        let limit = RateLimit::new().iops(self.iops).bytes_per_second(self.bytes_per_second);
        let mut disk = disk?.queues(self.queues)?.rate_limit(limit);
        if let Some(serial) = &self.serial {
            disk = disk.serial(serial)?;
        }
        if self.direct { disk.direct() } else { Ok(disk) }
    }
}

/// What is wrong with the text after `--disk`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum DiskArgError {
    #[error("no path; write PATH[,ro][,direct][,serial=TEXT][,queues=N][,iops=N][,bps=SIZE]")]
    NoPath,
    #[error("no option {0:?}; there are ro, direct, serial=TEXT, queues=N, iops=N, bps=SIZE")]
    Option(String),
    #[error(transparent)]
    Value(#[from] BadValue),
}

impl FromStr for DiskArg {
    type Err = DiskArgError;

    /// A comma in the path is written twice.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = split(text).into_iter();
        let path = parts.next().filter(|path| !path.is_empty()).ok_or(DiskArgError::NoPath)?;
        let mut disk = Self {
            path: path.into(),
            read_only: false,
            direct: false,
            serial: None,
            queues: 1,
            iops: 0,
            bytes_per_second: 0,
        };
        for part in parts {
            let (option, value) = part.split_once('=').unwrap_or((&part, ""));
            match (option, part.contains('=')) {
                ("ro", false) => disk.read_only = true,
                ("direct", false) => disk.direct = true,
                ("serial", true) => disk.serial = Some(serial(value)?),
                ("queues", true) => disk.queues = ranged("queues", value, 1..=MAX_QUEUES)?,
                ("iops", true) => disk.iops = at_least_one("iops", number("iops", value)?)?,
                ("bps", true) => disk.bytes_per_second = bytes("bps", value)?,
                _ => return Err(DiskArgError::Option(part)),
            }
        }
        Ok(disk)
    }
}

/// What [`Disk::serial`] takes: told of here, where the text names the disk.
fn serial(value: &str) -> Result<String, BadValue> {
    let printable = value.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
    match value.len() {
        1..=20 if printable => Ok(value.to_owned()),
        _ => Err(BadValue::new("serial", value, "write 1 to 20 printable ASCII characters")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_in_any_order_and_commas_in_the_path() {
        let plain: DiskArg = "root.ext4".parse().unwrap();
        assert_eq!((plain.path, plain.read_only, plain.queues), ("root.ext4".into(), false, 1));
        let full: DiskArg = "a,,b,bps=10M,ro,iops=500,serial=x=y,direct,queues=4".parse().unwrap();
        let expected = DiskArg {
            path: "a,b".into(),
            read_only: true,
            direct: true,
            serial: Some("x=y".into()),
            queues: 4,
            iops: 500,
            bytes_per_second: 10 << 20,
        };
        assert_eq!(full, expected);
        assert_eq!("d,bps=1000".parse::<DiskArg>().unwrap().bytes_per_second, 1000);
    }

    #[test]
    fn mistakes_are_named() {
        let error = |text: &str| text.parse::<DiskArg>().unwrap_err();
        assert_eq!(error(""), DiskArgError::NoPath);
        assert_eq!(error(",ro"), DiskArgError::NoPath);
        for option in ["rw", "ro=1", "serial", "iops", "format=qcow2", ""] {
            assert_eq!(error(&format!("d,{option}")), DiskArgError::Option(option.into()));
        }
        for value in [
            "iops=0",
            "iops=-1",
            "iops=x",
            "bps=0",
            "bps=1X",
            "queues=70000",
            "queues=0",
            "queues=17",
            "serial=",
        ] {
            assert!(matches!(error(&format!("d,{value}")), DiskArgError::Value(_)), "{value}");
        }
    }
}
