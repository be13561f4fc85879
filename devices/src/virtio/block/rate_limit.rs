use std::time::{Duration, Instant};

use super::super::token_bucket::Bucket;

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
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new()
    }
}

/// What a request takes from the buckets.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) operations: u64,
    pub(super) bytes: u64,
}

/// The buckets of one disk.
#[derive(Debug)]
pub(super) struct Limiter {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// `None` if there is nothing to limit.
    pub(super) fn new(limit: RateLimit, now: Instant) -> Option<Self> {
        let bucket = |rate| Bucket::new(rate, limit.burst, now);
        let (operations, bytes) = (bucket(limit.iops), bucket(limit.bytes));
        (operations.is_some() || bytes.is_some()).then_some(Self { operations, bytes })
    }

    /// How long to wait before a request may start.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let wait =
            |bucket: &Option<Bucket>| bucket.as_ref().map_or(Duration::ZERO, |b| b.wait(now));
        wait(&self.operations).max(wait(&self.bytes))
    }

    /// A request has started.
    pub(super) fn charge(&mut self, cost: Cost, now: Instant) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(cost.operations, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(cost.bytes, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a request of so many bytes, or says how long to wait.
    fn take(limiter: &mut Limiter, bytes: u64, now: Instant) -> Result<(), Duration> {
        match limiter.wait(now) {
            Duration::ZERO => {
                limiter.charge(Cost { operations: 1, bytes }, now);
                Ok(())
            }
            wait => Err(wait),
        }
    }

    /// A driver that always has a request of `bytes` ready, for `run`; how many start, and when the
    /// last one did. The clock is the test's own.
    fn run(limit: RateLimit, bytes: u64, run: Duration) -> (u64, Duration) {
        let start = Instant::now();
        let mut limiter = Limiter::new(limit, start).unwrap();
        let (mut now, mut started, mut last) = (start, 0, Duration::ZERO);
        while now < start + run {
            match take(&mut limiter, bytes, now) {
                Ok(()) => (started, last) = (started + 1, now - start),
                Err(wait) => {
                    assert!(wait > Duration::ZERO);
                    now += wait;
                }
            }
        }
        (started, last)
    }

    #[test]
    fn operations_a_second_and_the_burst_on_top() {
        let limit = RateLimit::new().iops(1000).burst(Duration::from_millis(100));
        let (started, _) = run(limit, 4096, Duration::from_secs(10));
        assert!((10_099..=10_101).contains(&started), "{started}");
        let (first, last) = run(limit, 0, Duration::from_nanos(1));
        assert!((99..=101).contains(&first), "{first}");
        assert_eq!(last, Duration::ZERO);
    }

    #[test]
    fn bytes_a_second_hold_for_requests_larger_than_the_bucket() {
        let limit = RateLimit::new().bytes_per_second(1 << 20).burst(Duration::from_millis(10));
        for size in [512, 4096, 1 << 20, 16 << 20] {
            let (started, _) = run(limit, size, Duration::from_secs(64));
            let moved = started * size;
            let allowed = 64 << 20;
            assert!(moved <= allowed + size + (1 << 20) / 100, "{size}: {moved}");
            assert!(moved >= allowed, "{size}: {moved}");
        }
    }

    #[test]
    fn the_tighter_of_two_rates_holds() {
        let both = RateLimit::new().iops(100).bytes_per_second(512 * 1000).burst(Duration::ZERO);
        let (small, _) = run(both, 512, Duration::from_secs(10));
        assert!((999..=1001).contains(&small), "{small}");
        let (large, _) = run(both, 51_200, Duration::from_secs(10));
        assert!((99..=101).contains(&large), "{large}");
    }

    #[test]
    fn a_pause_earns_the_burst_and_no_more() {
        let start = Instant::now();
        let limit = RateLimit::new().iops(10).burst(Duration::from_secs(1));
        let mut limiter = Limiter::new(limit, start).unwrap();
        let mut drain = |now| std::iter::from_fn(|| take(&mut limiter, 0, now).ok()).count();
        assert_eq!(drain(start), 10);
        assert_eq!(drain(start), 0);
        assert_eq!(drain(start + Duration::from_secs(3600)), 10);
        assert_eq!(drain(start), 0, "a clock that stands still or goes back gives nothing");
    }

    #[test]
    fn zero_is_no_limit_and_extremes_do_not_overflow() {
        let start = Instant::now();
        assert!(Limiter::new(RateLimit::new(), start).is_none());
        let slow = RateLimit::new().bytes_per_second(1).burst(Duration::MAX);
        let mut slow = Limiter::new(slow, start).unwrap();
        assert!((0..1000).all(|_| take(&mut slow, u64::MAX, start).is_ok()));
    }
}
