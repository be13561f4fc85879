//! What a run takes into the lab and brings out of it, as tar archives.

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};
use std::process::Command;
use std::str::FromStr;

use super::{GUEST_INITRD, GUEST_KERNEL, Io, Lab, Run};
use crate::step;

/// A file or folder of this host, and its place in the lab.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Shared {
    pub(crate) host: PathBuf,
    /// Absolute.
    pub(crate) guest: PathBuf,
}

impl FromStr for Shared {
    type Err = anyhow::Error;

    /// `HOST[:GUEST]`, the latter absolute or taken from `/root`.
    fn from_str(text: &str) -> Result<Self> {
        let (host, guest) = match text.split_once(':') {
            Some((host, guest)) => (Path::new(host), Some(Path::new(guest))),
            None => (Path::new(text), None),
        };
        let host = fs::canonicalize(host)?;
        let guest = guest.or(host.file_name().map(Path::new)).context("a guest path is needed")?;
        let guest = Path::new("/root").join(guest);
        if guest.components().any(|part| part == Component::ParentDir) {
            bail!("the path in the lab must not climb with ..");
        }
        Ok(Self { host, guest })
    }
}

/// `NAME=VALUE`, where the name is one that a shell can set.
pub(crate) fn parse_variable(text: &str) -> Result<(String, String)> {
    let (name, value) = text.split_once('=').context("want NAME=VALUE")?;
    let first_is_no_digit = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    if !first_is_no_digit || !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        bail!("a variable's name is letters, digits and _");
    }
    Ok((name.into(), value.into()))
}

/// Packs the command and all its files; the lab unpacks them over its root.
pub(super) fn pack(lab: &Lab, run: &Run, io: Io, scratch: &Path) -> Result<PathBuf> {
    let stage = scratch.join("stage");
    fs::create_dir_all(stage.join("lab"))?;
    fs::write(stage.join("lab/command"), command_script(run, io))?;
    fs::set_permissions(stage.join("lab/command"), fs::Permissions::from_mode(0o755))?;
    if io == Io::Terminal {
        fs::write(stage.join("lab/terminal"), "")?;
    }
    place(&stage, &lab.guest.initrd, Path::new(GUEST_INITRD))?;
    if let Some(sparkler) = &lab.guest.sparkler {
        place(&stage, sparkler, Path::new("/usr/local/bin/sparkler"))?;
    }
    // Programs that are taken along have libraries in common.
    let files: BTreeMap<_, _> = run.files.iter().map(|file| (&file.guest, &file.host)).collect();
    for (guest, host) in files {
        place(&stage, host, guest)?;
    }
    let archive = scratch.join("files.tar");
    let mut pack = Command::new("tar");
    pack.args(["--create", "--dereference", "--owner=0", "--group=0", "--file"]);
    step::run("packing files for the lab", pack.arg(&archive).arg("-C").arg(&stage).arg("."))?;
    Ok(archive)
}

/// Unpacks what the command left in `/results`.
pub(super) fn unpack_results(archive: &Path, folder: &Path) -> Result<()> {
    if fs::metadata(archive).map_or(0, |metadata| metadata.len()) == 0 {
        bail!("the lab ended before it could bring out /results");
    }
    fs::create_dir_all(folder)?;
    let mut unpack = Command::new("tar");
    unpack.args(["--extract", "--no-same-owner", "--file"]).arg(archive).arg("-C").arg(folder);
    step::run("unpacking the results", &mut unpack)?;
    Ok(())
}

/// A link suffices: `tar` follows it.
fn place(stage: &Path, host: &Path, guest: &Path) -> Result<()> {
    let place = stage.join(guest.strip_prefix("/")?);
    fs::create_dir_all(place.parent().context("the lab's root cannot be replaced")?)?;
    symlink(host, &place)
        .with_context(|| format!("cannot place {} at {}", host.display(), guest.display()))
}

fn command_script(run: &Run, io: Io) -> Vec<u8> {
    let mut script = b"#!/bin/sh\n".to_vec();
    let usual = [
        ("SPARKLER_KERNEL", GUEST_KERNEL),
        ("SPARKLER_INITRD", GUEST_INITRD),
        // Tests are more patient where the processor is emulated.
        ("SPARKLER_EMULATED", "1"),
    ];
    let usual = usual.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in usual.chain(run.env.iter().cloned()) {
        script.extend_from_slice(format!("export {name}=").as_bytes());
        quote(OsStr::new(&value), &mut script);
        script.push(b'\n');
    }
    if io == Io::Terminal {
        let term = std::env::var_os("TERM").unwrap_or("linux".into());
        script.extend_from_slice(b"export TERM=");
        quote(&term, &mut script);
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout()) {
            let (rows, columns) = (size.ws_row, size.ws_col);
            script.extend_from_slice(format!("\nstty rows {rows} cols {columns}").as_bytes());
        }
        script.push(b'\n');
    }
    script.extend_from_slice(b"exec");
    for word in &run.command {
        script.push(b' ');
        quote(word, &mut script);
    }
    script.push(b'\n');
    script
}

/// Quotes a word for the shell: everything is literal between single quotes but the quote itself.
fn quote(word: &OsStr, script: &mut Vec<u8>) {
    script.push(b'\'');
    for &byte in word.as_bytes() {
        match byte {
            b'\'' => script.extend_from_slice(br"'\''"),
            _ => script.push(byte),
        }
    }
    script.push(b'\'');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_goes_to_root_unless_told_otherwise() {
        let shared: Shared = "/etc/hosts".parse().unwrap();
        assert_eq!(shared.guest, Path::new("/root/hosts"));
        let shared: Shared = "/etc/hosts:/data/hosts".parse().unwrap();
        assert_eq!(shared.guest, Path::new("/data/hosts"));
        assert!("/etc/hosts:../x".parse::<Shared>().is_err());
        assert!("/no/such/file".parse::<Shared>().is_err());
    }

    #[test]
    fn words_reach_the_shell_literally() {
        let mut script = Vec::new();
        quote(OsStr::new("it's $HOME"), &mut script);
        assert_eq!(script, br"'it'\''s $HOME'");
    }

    #[test]
    fn a_variable_needs_a_name_that_a_shell_can_set() {
        assert_eq!(parse_variable("A_1=x=y").unwrap(), ("A_1".into(), "x=y".into()));
        assert!(parse_variable("1A=x").is_err());
        assert!(parse_variable("A;B=x").is_err());
    }
}
