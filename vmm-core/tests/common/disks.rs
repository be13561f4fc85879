//! Disks of the tests on KVM, and what guests say of them.

use std::path::Path;

use sparkler::virtio::block::{Disk, EngineKind};
use sparkler::{Outcome, VmBuilder};
use tempfile::NamedTempFile;

use super::Captured;

/// A disk's file of `bytes` zeroes, which goes away with the test.
pub(crate) fn file(bytes: u64) -> NamedTempFile {
    let file = NamedTempFile::new().unwrap();
    file.as_file().set_len(bytes).unwrap();
    file
}

pub(crate) fn open(path: &Path, engine: EngineKind) -> Disk {
    Disk::open(path).unwrap().engine(engine).unwrap()
}

/// How a machine ended, and what its guest printed.
pub(crate) fn run_to_end(builder: VmBuilder) -> (Outcome, String) {
    let captured = Captured::default();
    let running = builder.console(captured.console()).build().unwrap().start().unwrap();
    let outcome = running.wait().unwrap();
    drop(running); // Everything printed has been written then.
    (outcome, captured.text())
}

/// What a guest printed, if all went well.
pub(crate) fn succeed(builder: VmBuilder) -> String {
    let (outcome, text) = run_to_end(builder);
    assert_eq!(outcome, Outcome::Exited(0), "{text}");
    text
}

/// The value in a line `key=value`.
pub(crate) fn value<'a>(text: &'a str, key: &str) -> &'a str {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or_else(|| panic!("no {key} in {text}"))
}

pub(crate) fn number(text: &str, key: &str) -> u64 {
    value(text, key).parse().unwrap()
}

/// The hash that `test=disksum` prints.
pub(crate) fn fnv1a(bytes: &[u8]) -> String {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
    format!("{:x}", bytes.iter().fold(0xcbf2_9ce4_8422_2325, step))
}
