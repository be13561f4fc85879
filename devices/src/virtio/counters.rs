/// The counters of a device, as they are now. Asked from any thread while the device works; so they are
/// atomic numbers, and neither side waits for the other.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
/// use sparkler_devices::virtio::Counters;
///
/// #[derive(Default)]
/// struct OfShout {
///     requests: AtomicU64,
/// }
///
/// impl Counters for OfShout {
///     fn read(&self, each: &mut dyn FnMut(&'static str, u64)) {
///         each("requests", self.requests.load(Ordering::Relaxed));
///     }
/// }
/// ```
pub trait Counters: Send + Sync {
    /// Calls `each` with name and value of every counter, always in the same order. Names are of lower-case
    /// letters and underscores, and say what is counted, with the unit at the end: `reads`, `read_bytes`.
    /// Values never become less.
    fn read(&self, each: &mut dyn FnMut(&'static str, u64));
}

/// Nothing is counted.
impl Counters for () {
    fn read(&self, _each: &mut dyn FnMut(&'static str, u64)) {}
}

/// What a transport counts of its device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct TransportStats {
    /// Interrupts raised, for used buffers and changes of the configuration.
    pub interrupts: u64,
    /// Times that the driver reset the device.
    pub resets: u64,
    /// Times that the device needed a reset: the driver broke the rules, or the device failed.
    pub failures: u64,
}
