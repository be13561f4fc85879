use std::time::{Duration, Instant};

use super::super::token_bucket::Bucket;

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
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// The buckets of one direction of a card.
#[derive(Debug)]
pub(super) struct Limiter {
    packets: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// `None` if there is nothing to limit.
    pub(super) fn new(limit: RateLimit, now: Instant) -> Option<Self> {
        let bucket = |rate| Bucket::new(rate, limit.burst, now);
        let (packets, bytes) = (bucket(limit.packets), bucket(limit.bytes));
        (packets.is_some() || bytes.is_some()).then_some(Self { packets, bytes })
    }

    /// Until when the next frame must wait; `None`: it may go.
    pub(super) fn held_until(&self, now: Instant) -> Option<Instant> {
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.wait(now));
        let wait = wait(&self.packets).max(wait(&self.bytes)).unwrap_or_default();
        if wait.is_zero() { None } else { Some(now.checked_add(wait).unwrap_or(now)) }
    }

    /// A frame of so many bytes has gone.
    pub(super) fn charge(&mut self, bytes: usize, now: Instant) {
        if let Some(bucket) = &mut self.packets {
            bucket.take(1, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(u64::try_from(bytes).unwrap_or(u64::MAX), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tighter_rate_holds_and_zero_is_none() {
        let start = Instant::now();
        assert!(Limiter::new(RateLimit::new(), start).is_none());
        let limit = RateLimit::new().packets_per_second(100).bytes_per_second(100_000);
        for (bytes, expected) in [(60, 1_000), (10_000, 100)] {
            let mut limiter = Limiter::new(limit.burst(Duration::ZERO), start).unwrap();
            let (mut now, mut gone) = (start, 0);
            while now < start + Duration::from_secs(10) {
                match limiter.held_until(now) {
                    None => {
                        limiter.charge(bytes, now);
                        gone += 1;
                    }
                    Some(until) => now = until,
                }
            }
            assert!((expected - 1..=expected + 1).contains(&gone), "{gone} of {bytes} bytes");
        }
    }
}
