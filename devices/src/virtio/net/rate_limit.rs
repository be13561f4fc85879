use std::time::{Duration, Instant};

use super::super::token_bucket::{Cost, Limiter};

/// How much a guest may send in a second, and how much it may receive; each direction has all of it.
///
/// Each of the two rates is a token bucket. It fills at its rate up to what [`burst`](Self::burst)
/// amounts to at that rate, and starts full. A frame goes as soon as neither bucket is empty, whatever
/// its own size; what it takes beyond that is paid back before the next one goes. So the rate holds over
/// time, also over resets by the driver. A frame that is to be cut up counts as one. Nothing is
/// dropped: the guest, or the network, waits.
///
/// ```
/// use sparkler_devices::virtio::net::RateLimit;
/// let limit = RateLimit::new().packets_per_second(20_000).bytes_per_second(12_500_000);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateLimit {
    packets: u64,
    bytes: u64,
    burst: Duration,
}

impl RateLimit {
    /// No limit yet, and a burst of a tenth of a second.
    #[must_use]
    pub const fn new() -> Self {
        Self { packets: 0, bytes: 0, burst: Duration::from_millis(100) }
    }

    /// At most this many frames a second on average; 0: any number.
    #[must_use]
    pub const fn packets_per_second(self, packets: u64) -> Self {
        Self { packets, ..self }
    }

    /// At most this many bytes a second on average, from the Ethernet headers on; 0: any number.
    #[must_use]
    pub const fn bytes_per_second(self, bytes: u64) -> Self {
        Self { bytes, ..self }
    }

    /// After a pause, as much may go at once as the rates allow in this time.
    #[must_use]
    pub const fn burst(self, burst: Duration) -> Self {
        Self { burst, ..self }
    }

    /// For one direction.
    pub(super) fn limiter(self, now: Instant) -> Option<Limiter> {
        Limiter::new(Cost { operations: self.packets, bytes: self.bytes }, self.burst, now)
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}
