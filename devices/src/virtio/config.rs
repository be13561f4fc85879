use std::sync::{PoisonError, RwLock};

/// The device-specific configuration space (virtio 1.2, 2.5), as the driver sees it.
///
/// Called from the vCPU threads, while the device's own thread runs, so it brings its own lock.
/// `offset` counts from the first byte of the space; offsets and lengths are the guest's and can be
/// anything.
pub trait ConfigSpace: Send + Sync {
    /// The driver reads: fill `data`, which holds zeros, as far as there is something to read.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// The driver writes. By default the space is read-only and the write is lost.
    fn write(&self, offset: u64, data: &[u8]) {
        let _ = (offset, data);
    }

    /// Counts the changes, so that a driver can tell whether several reads belong together (2.5.3). It
    /// must change in the same instant as what [`read`](Self::read) returns.
    fn generation(&self) -> u32 {
        0
    }
}

/// A configuration space of plain bytes, read-only to the driver.
///
/// ```
/// use sparkler_devices::virtio::{ConfigBytes, ConfigSpace};
///
/// let config = ConfigBytes::new(8u64.to_le_bytes());
/// config.update(|bytes| bytes.copy_from_slice(&9u64.to_le_bytes()));
/// let mut low = [0; 4];
/// config.read(0, &mut low);
/// assert_eq!((low, config.generation()), ([9, 0, 0, 0], 1));
/// ```
#[derive(Debug, Default)]
pub struct ConfigBytes(RwLock<(Vec<u8>, u32)>);

impl ConfigBytes {
    /// A space that holds `bytes` and ends after them.
    #[must_use]
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(RwLock::new((bytes.into(), 0)))
    }

    /// Changes the bytes. The driver sees all of the change or nothing; it hears of it through
    /// [`Session::config_changed`](super::Session::config_changed).
    pub fn update(&self, change: impl FnOnce(&mut [u8])) {
        let (bytes, generation) = &mut *self.0.write().unwrap_or_else(PoisonError::into_inner);
        change(bytes);
        *generation = generation.wrapping_add(1);
    }
}

impl ConfigSpace for ConfigBytes {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let (bytes, _) = &*self.0.read().unwrap_or_else(PoisonError::into_inner);
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        for (byte, value) in data.iter_mut().zip(rest.unwrap_or_default()) {
            *byte = *value;
        }
    }

    fn generation(&self) -> u32 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).1
    }
}
