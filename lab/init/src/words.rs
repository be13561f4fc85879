//! The words of the kernel's command line that are meant for this init.

use anyhow::{Context, Result, bail};

/// How the guest shall end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Exit(u8),
    Reboot,
    PowerOff,
    Panic,
    Hang,
}

/// Everything that the command line asks of this init.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Words {
    pub(crate) end: End,
}

impl Words {
    /// Reads our words and leaves the kernel's alone.
    pub(crate) fn parse(cmdline: &str) -> Result<Self> {
        let mut code = 0;
        let mut end = "exit";
        for word in cmdline.split_ascii_whitespace() {
            match word.split_once('=') {
                Some(("exit", value)) => {
                    code = value.parse().with_context(|| format!("{word}: want 0 to 255"))?;
                }
                Some(("end", value)) => end = value,
                _ => {}
            }
        }
        let end = match end {
            "exit" => End::Exit(code),
            "reboot" => End::Reboot,
            "poweroff" => End::PowerOff,
            "panic" => End::Panic,
            "hang" => End::Hang,
            other => bail!("end={other}: want exit, reboot, poweroff, panic or hang"),
        };
        Ok(Self { end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words_are_left_alone() {
        let words = Words::parse("console=ttyS0 quiet panic=-1 exit=42\n").unwrap();
        assert_eq!(words, Words { end: End::Exit(42) });
    }

    #[test]
    fn an_end_other_than_the_exit_port() {
        assert_eq!(Words::parse("exit=3 end=poweroff").unwrap().end, End::PowerOff);
        assert!(Words::parse("end=never").is_err());
        assert!(Words::parse("exit=256").is_err());
    }
}
