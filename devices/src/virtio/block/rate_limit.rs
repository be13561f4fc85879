use std::time::{Duration, Instant};

use super::super::token_bucket::{Cost, Limiter};

/// How much a guest may ask of a disk in a second.
///
/// Each of the two rates is a token bucket. It fills at its rate up to what [`burst`](Self::burst)
/// amounts to at that rate, and starts full. A request starts as soon as neither bucket is empty,
/// whatever its own size; what it takes beyond that is paid back before the next one starts. So no
/// request is too large for a limit, and the rate holds over time, also over resets by the driver.
/// Every request counts as one operation, but discards and zeroes as one for every 32 MiB; the bytes
/// are those that a read or write moves, and those that become zero.
///
/// ```
/// use sparkler_devices::virtio::block::RateLimit;
/// let limit = RateLimit::new().iops(2_000).bytes_per_second(50 << 20);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    iops: u64,
    bytes: u64,
    burst: Duration,
}

impl RateLimit {
    /// No limit yet, and a burst of a tenth of a second.
    #[must_use]
    pub const fn new() -> Self {
        Self { iops: 0, bytes: 0, burst: Duration::from_millis(100) }
    }

    /// At most this many requests a second on average; 0: any number.
    #[must_use]
    pub const fn iops(self, iops: u64) -> Self {
        Self { iops, ..self }
    }

    /// At most this many bytes read and written a second on average; 0: any number.
    #[must_use]
    pub const fn bytes_per_second(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// After a pause, as much may be asked at once as the rates allow in this time.
    #[must_use]
    pub const fn burst(self, burst: Duration) -> Self {
        Self { burst, ..self }
    }

    pub(super) fn limiter(self, now: Instant) -> Option<Limiter> {
        Limiter::new(Cost { operations: self.iops, bytes: self.bytes }, self.burst, now)
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}
