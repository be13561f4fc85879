//! A port by which a guest says how far it has come.

use crate::BusDevice;

/// The boot-mark port.
pub const BOOT_MARK_PORT: u16 = 0xf8;

/// One port; each byte written to it is the number of a mark.
///
/// The callback runs on the vCPU thread, at once: the time it takes is the time of the mark.
#[derive(Debug)]
pub struct BootMark<F>(F);

impl<F: Fn(u8) + Send + Sync> BootMark<F> {
    /// A port that hands each number to `mark`.
    pub fn new(mark: F) -> Self {
        Self(mark)
    }
}

impl<F: Fn(u8) + Send + Sync> BusDevice for BootMark<F> {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&self, _offset: u64, data: &[u8]) {
        if let Some(&number) = data.first() {
            (self.0)(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn hands_on_the_first_byte_of_each_write() {
        let marks = Mutex::new(Vec::new());
        let port = BootMark::new(|number| marks.lock().unwrap().push(number));
        port.write(0, &[1]);
        port.write(0, &[]);
        port.write(0, &[2, 3]);
        assert_eq!(*marks.lock().unwrap(), [1, 2]);
    }
}
