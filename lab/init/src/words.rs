//! The words of the kernel's command line that are meant for this init.

use anyhow::{Context, Result, bail};

/// How the guest shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit code, or with that of the job.
    Exit(Option<u8>),
    Reboot,
    PowerOff,
    /// Switch off when the power button is pressed.
    Button,
    Panic,
    Hang,
}

/// Everything that the command line asks of this init.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words<'a> {
    pub(crate) end: End,
    /// The device to write records to.
    pub(crate) records: Option<&'a str>,
    /// The device with the root file system.
    pub(crate) root: Option<&'a str>,
    /// The root is mounted for reading only.
    pub(crate) read_only: bool,
    /// The device with the job, instead of the disk that says so by its serial number.
    pub(crate) job: Option<&'a str>,
    /// The root's own init, to hand over to.
    pub(crate) init: Option<&'a str>,
}

impl<'a> Words<'a> {
    /// Reads our words and leaves the kernel's alone.
    pub(crate) fn parse(cmdline: &'a str) -> Result<Self> {
        let (mut code, mut end) = (None, "exit");
        let (mut records, mut root, mut read_only) = (None, None, false);
        let (mut job, mut init) = (None, None);
        for word in cmdline.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("exit", value)) => {
                    let value = value.parse();
                    code = Some(value.with_context(|| format!("{word}: want 0 to 255"))?);
                }
                Some(("end", value)) => end = value,
                Some(("records", value)) => records = Some(value),
                Some(("root", value)) => root = Some(value),
                Some(("job", value)) => job = Some(value),
                Some(("init", value)) => init = Some(value),
                None if word == "ro" => read_only = true,
                _ => {}
            }
        }
        let end = match end {
            "exit" => End::Exit(code),
            "reboot" => End::Reboot,
            "poweroff" => End::PowerOff,
            "button" => End::Button,
            "panic" => End::Panic,
            "hang" => End::Hang,
            other => bail!("end={other}: want exit, reboot, poweroff, button, panic or hang"),
        };
        Ok(Self { end, records, root, read_only, job, init })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_left_alone() {
        let words = Words::parse("console=ttyS0 quiet panic=-1 exit=42\n").unwrap();
        let (end, read_only) = (End::Exit(Some(42)), false);
        let none = None;
        let wanted = Words { end, records: none, root: none, read_only, job: none, init: none };
        assert_eq!(words, wanted);
    }

    #[test]
    fn an_end_other_than_the_exit_port() {
        assert_eq!(Words::parse("exit=3 end=poweroff").unwrap().end, End::PowerOff);
        assert!(Words::parse("end=never").is_err());
        assert!(Words::parse("exit=256").is_err());
    }

    #[test]
    fn a_root_is_for_writing_unless_told_otherwise() {
        let words = Words::parse("root=/dev/vda init=/sbin/init").unwrap();
        assert_eq!((words.root, words.init), (Some("/dev/vda"), Some("/sbin/init")));
        assert!(!words.read_only);
        assert!(Words::parse("root=/dev/vda ro").unwrap().read_only);
    }
}
