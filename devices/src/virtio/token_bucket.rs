use std::time::{Duration, Instant};

/// A token bucket, kept as the moment at which it will be full again.
#[derive(Debug)]
pub(super) struct Bucket {
    /// Tokens a second, not zero.
    rate: u64,
    /// The time that it takes to fill.
    burst: Duration,
    full_at: Instant,
}

impl Bucket {
    /// A full one; `None` if the rate is 0: no limit.
    pub(super) fn new(rate: u64, burst: Duration, now: Instant) -> Option<Self> {
        (rate > 0).then_some(Self { rate, burst, full_at: now })
    }

    /// How long until it holds anything at all.
    pub(super) fn wait(&self, now: Instant) -> Duration {
        let to_full = self.full_at.saturating_duration_since(now);
        // Even with no burst at all, a full bucket serves one request.
        to_full.saturating_sub(self.burst.saturating_sub(Duration::from_nanos(1)))
    }

    pub(super) fn take(&mut self, tokens: u64, now: Instant) {
        const NANOS: u128 = 1_000_000_000;
        let nanos = u128::from(tokens).saturating_mul(NANOS).checked_div(self.rate.into());
        let cost =
            Duration::from_nanos(nanos.and_then(|n| u64::try_from(n).ok()).unwrap_or(u64::MAX));
        let from = self.full_at.max(now);
        // Beyond what the clock can tell there is nothing left to limit.
        self.full_at = from.checked_add(cost).unwrap_or(from);
    }
}
