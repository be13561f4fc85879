use std::time::{Duration, Instant};

/// What one request or frame takes from the buckets, or what they get in a second.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cost {
    pub(super) operations: u64,
    pub(super) bytes: u64,
}

impl Cost {
    pub(super) const fn one(bytes: usize) -> Self {
        Self { operations: 1, bytes: bytes as u64 }
    }
}

/// The two buckets of a disk, or of one direction of a network card.
#[derive(Debug)]
pub(super) struct Limiter {
    operations: Option<Bucket>,
    bytes: Option<Bucket>,
}

impl Limiter {
    /// Both are full, and full again after `burst`. A rate of 0 is no limit; `None` if neither is one.
    pub(super) fn new(rates: Cost, burst: Duration, now: Instant) -> Option<Self> {
        let bucket = |rate| Bucket::new(rate, burst, now);
        let (operations, bytes) = (bucket(rates.operations), bucket(rates.bytes));
        (operations.is_some() || bytes.is_some()).then_some(Self { operations, bytes })
    }

    /// Until when the next request or frame must wait; `None`: it may go.
    pub(super) fn held_until(&self, now: Instant) -> Option<Instant> {
        let wait = |bucket: &Option<Bucket>| bucket.as_ref().map(|bucket| bucket.wait(now));
        let wait = wait(&self.operations).max(wait(&self.bytes)).unwrap_or_default();
        if wait.is_zero() { None } else { Some(now.checked_add(wait).unwrap_or(now)) }
    }

    /// It has gone.
    pub(super) fn charge(&mut self, cost: Cost, now: Instant) {
        if let Some(bucket) = &mut self.operations {
            bucket.take(cost.operations, now);
        }
        if let Some(bucket) = &mut self.bytes {
            bucket.take(cost.bytes, now);
        }
    }
}

/// A token bucket, kept as the moment at which it will be full again.
#[derive(Debug)]
struct Bucket {
    /// Tokens a second, not zero.
    rate: u64,
    /// The time that it takes to fill.
    burst: Duration,
    full_at: Instant,
}

impl Bucket {
    /// A full one; `None` if the rate is 0: no limit.
    fn new(rate: u64, burst: Duration, now: Instant) -> Option<Self> {
        (rate > 0).then_some(Self { rate, burst, full_at: now })
    }

    /// How long until it holds anything at all.
    fn wait(&self, now: Instant) -> Duration {
        let to_full = self.full_at.saturating_duration_since(now);
        // Even with no burst at all, a full bucket serves one request.
        to_full.saturating_sub(self.burst.saturating_sub(Duration::from_nanos(1)))
    }

    fn take(&mut self, tokens: u64, now: Instant) {
        const NANOS: u128 = 1_000_000_000;
        let nanos = u128::from(tokens).saturating_mul(NANOS).checked_div(self.rate.into());
        let cost =
            Duration::from_nanos(nanos.and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX));
        let from = self.full_at.max(now);
        // Beyond what the clock can tell there is nothing left to limit.
        self.full_at = from.checked_add(cost).unwrap_or(from);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Starts a request of so many bytes, or says until when it must wait.
    fn take(limiter: &mut Limiter, bytes: u64, now: Instant) -> Result<(), Instant> {
        limiter.held_until(now).map_or(Ok(()), Err)?;
        limiter.charge(Cost { operations: 1, bytes }, now);
        Ok(())
    }

    /// A driver that always has a request of `bytes` ready, for `run`; how many start, and when the
    /// last one did. The clock is the test's own.
    fn run((rates, burst): (Cost, Duration), bytes: u64, run: Duration) -> (u64, Duration) {
        let start = Instant::now();
        let mut limiter = Limiter::new(rates, burst, start).unwrap();
        let (mut now, mut started, mut last) = (start, 0, Duration::ZERO);
        while now < start + run {
            match take(&mut limiter, bytes, now) {
                Ok(()) => (started, last) = (started + 1, now - start),
                Err(until) => {
                    assert!(until > now);
                    now = until;
                }
            }
        }
        (started, last)
    }

    #[test]
    fn operations_a_second_and_the_burst_on_top() {
        let limit = (Cost { operations: 1000, bytes: 0 }, Duration::from_millis(100));
        let (started, _) = run(limit, 4096, Duration::from_secs(10));
        assert!((10_099..=10_101).contains(&started), "{started}");
        let (first, last) = run(limit, 0, Duration::from_nanos(1));
        assert!((99..=101).contains(&first), "{first}");
        assert_eq!(last, Duration::ZERO);
    }

    #[test]
    fn bytes_a_second_hold_for_requests_larger_than_the_bucket() {
        let limit = (Cost { operations: 0, bytes: 1 << 20 }, Duration::from_millis(10));
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
        let both = (Cost { operations: 100, bytes: 512 * 1000 }, Duration::ZERO);
        let (small, _) = run(both, 512, Duration::from_secs(10));
        assert!((999..=1001).contains(&small), "{small}");
        let (large, _) = run(both, 51_200, Duration::from_secs(10));
        assert!((99..=101).contains(&large), "{large}");
    }

    #[test]
    fn a_pause_earns_the_burst_and_no_more() {
        let start = Instant::now();
        let rates = Cost { operations: 10, bytes: 0 };
        let mut limiter = Limiter::new(rates, Duration::from_secs(1), start).unwrap();
        let mut drain = |now| std::iter::from_fn(|| take(&mut limiter, 0, now).ok()).count();
        assert_eq!(drain(start), 10);
        assert_eq!(drain(start), 0);
        assert_eq!(drain(start + Duration::from_secs(3600)), 10);
        assert_eq!(drain(start), 0, "a clock that stands still or goes back gives nothing");
    }

    #[test]
    fn zero_is_no_limit_and_extremes_do_not_overflow() {
        let start = Instant::now();
        let limiter = |bytes| Limiter::new(Cost { operations: 0, bytes }, Duration::MAX, start);
        assert!(limiter(0).is_none());
        let mut slow = limiter(1).unwrap();
        assert!((0..1000).all(|_| take(&mut slow, u64::MAX, start).is_ok()));
    }
}
