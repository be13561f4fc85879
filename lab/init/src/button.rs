//! The power button, as Linux shows it to user space: a key of an input device.

use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{Read, Write};

/// `struct input_event` on 64-bit machines: two words of time, type, code, value.
const EVENT: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;
/// Whatever it is called: a machine for virtio has no other input device.
const DEVICE: &str = "/dev/input/event0";

/// Waits until it is pressed.
pub(crate) fn wait() -> Result<()> {
    let mut device = File::open(DEVICE).with_context(|| format!("cannot open {DEVICE}"))?;
    writeln!(std::io::stdout(), "init: waiting for the power button")?;
    loop {
        let mut event = [0; EVENT];
        device.read_exact(&mut event)?;
        let [.., type_low, type_high, code_low, code_high, a, b, c, d] = event;
        let kind = u16::from_le_bytes([type_low, type_high]);
        let code = u16::from_le_bytes([code_low, code_high]);
        match (kind, code, i32::from_le_bytes([a, b, c, d])) {
            (EV_KEY, KEY_POWER, 1) => return Ok(()),
            (EV_KEY, other, _) if other != KEY_POWER => bail!("a key that is not there: {other}"),
            _ => {} // The end of an event, or the key was let go.
        }
    }
}
