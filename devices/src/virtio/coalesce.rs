//! When to interrupt a driver that has more requests under way.
//!
//! Where a guest is slow to offer requests, as under nested or emulated virtualization, a device that
//! answers each at once never sees two together: every request costs the guest an interrupt, and the
//! interrupt keeps it from offering the next. So, if the guest goes on offering, its interrupt waits
//! for a while. The used ring is written at once all the same.

use std::mem;
use std::time::{Duration, Instant};

/// Requests that follow each other sooner than this come together by themselves; and no thread sleeps for
/// a shorter time than this, as it is the slack of Linux's timers.
const SHORTEST_GAP: Duration = Duration::from_micros(50);
/// The longest wait for one more request.
const LONGEST_WAIT: Duration = Duration::from_millis(1);
/// How late the oldest answer may be.
const LONGEST_HOLD: Duration = Duration::from_millis(5);
/// The most answers for one interrupt; no more are needed for it not to matter.
const MOST_HELD: u32 = 32;
/// After how many interrupts a hold is tried, at first and at most; and how many later the requests' pace
/// without holds is measured again.
const PAUSES: (u32, u32) = (8, 1024);

/// Interrupt coalescing that adapts to the driver: to how far apart its requests come, and how many
/// come without an answer to earlier ones.
///
/// A hold that nothing comes in (the driver does wait for its interrupt) costs the driver time. Then
/// half as many answers are held from now on; none at all if that was the only one, or if requests come
/// no sooner than they did without (the driver does not need interrupts, but waits for answers), until a
/// trial after more and more of them.
#[derive(Debug)]
pub(super) struct Coalescing {
    /// From one request to the next, on average, while answers are held.
    gap: Duration,
    /// The same while none are.
    gap_without: Duration,
    last_request: Option<Instant>,
    /// Answers that the driver was not told of.
    held: u32,
    /// When the oldest of them was given.
    since: Option<Instant>,
    /// When the wait for more is over.
    until: Option<Instant>,
    /// It is over, and nothing came.
    quiet: bool,
    /// How many may be held until an interrupt. 1: none are held back.
    limit: u32,
    /// Interrupts until the next trial, or the end of one that works.
    left: u32,
    next_pause: u32,
}

impl Coalescing {
    pub(super) fn new() -> Self {
        Self {
            gap: Duration::ZERO,
            gap_without: Duration::ZERO,
            last_request: None,
            held: 0,
            since: None,
            until: None,
            quiet: false,
            limit: 1,
            left: PAUSES.0,
            next_pause: PAUSES.0,
        }
    }

    /// A request was answered in the ring.
    pub(super) fn answered(&mut self) {
        self.held = self.held.saturating_add(1);
    }

    /// The device has looked at the ring, and taken so many requests from it.
    pub(super) fn looked(&mut self, requests: u32, now: Instant) {
        if self.held > 0 {
            self.since.get_or_insert(now);
        }
        if requests == 0 {
            return;
        }
        if let Some(last) = self.last_request.replace(now) {
            let passed = now.saturating_duration_since(last).min(LONGEST_HOLD);
            let gap = passed.checked_div(requests).unwrap_or_default();
            let average = if self.limit > 1 { &mut self.gap } else { &mut self.gap_without };
            *average = mean(*average, gap, requests);
        }
    }

    /// Whether the driver is to be told now, though more may come at once.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.holds() || self.held >= self.limit || self.rest(now).is_zero()
    }

    /// How long to wait for more before the driver is told. `None`: tell it.
    ///
    /// `came`: whether requests came or were answered since the last call. If not, it is the rest of
    /// the same wait, which something else has cut short.
    pub(super) fn wait(&mut self, came: bool, now: Instant) -> Option<Duration> {
        if self.held == 0 || self.is_due(now) {
            return None;
        }
        if came {
            // Twice the average, as some come later.
            self.until = now.checked_add(self.gap.saturating_mul(2).min(LONGEST_WAIT));
        }
        let wait = self.until?.saturating_duration_since(now);
        self.quiet = wait.is_zero();
        if self.quiet { None } else { Some(wait.min(self.rest(now))) }
    }

    /// The driver is told.
    pub(super) fn told(&mut self) {
        let (held, quiet) = (mem::take(&mut self.held), mem::take(&mut self.quiet));
        (self.since, self.until) = (None, None);
        if held == 0 {
            return;
        }
        self.left = self.left.saturating_sub(1);
        if self.limit == 1 {
            if self.left == 0 {
                (self.limit, self.left, self.gap) = (2, PAUSES.1, self.gap_without);
            }
        } else if quiet && held > 3 {
            self.limit = held / 2;
        } else if quiet || self.is_slower() {
            (self.limit, self.left) = (1, self.next_pause);
            self.next_pause = self.next_pause.saturating_mul(2).min(PAUSES.1);
        } else if self.left == 0 {
            (self.limit, self.left) = (1, PAUSES.0);
        } else if self.holds() && held >= self.limit {
            self.limit = self.limit.saturating_add(1).min(MOST_HELD);
            if self.gap < self.gap_without {
                self.next_pause = PAUSES.0;
            }
        }
    }

    /// Whether answers are held back at all.
    fn holds(&self) -> bool {
        self.limit > 1 && self.gap >= SHORTEST_GAP
    }

    /// Whether requests come less often than while none were held, by more than chance and a busy host do.
    fn is_slower(&self) -> bool {
        self.gap.saturating_mul(2) > self.gap_without.saturating_mul(3)
    }

    /// For how much longer the oldest answer may be held.
    fn rest(&self, now: Instant) -> Duration {
        let held = self.since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        LONGEST_HOLD.saturating_sub(held)
    }
}

/// `average` of the last eight or so, after `count` more of `value` each. The first ones are the average.
fn mean(average: Duration, value: Duration, count: u32) -> Duration {
    let new = if average.is_zero() { 8 } else { count.min(8) };
    let old = 8u32.saturating_sub(new);
    let sum = average.saturating_mul(old).saturating_add(value.saturating_mul(new));
    sum.checked_div(8).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Takes `gap` for a request, and as much for an interrupt.
    struct Driver {
        /// How many answers it waits for at most before it offers more.
        depth: u32,
        gap: Duration,
        /// It finds answers by itself, without an interrupt.
        looks: bool,
    }

    struct Run {
        interrupts: u32,
        /// Waits in which nothing came.
        in_vain: u32,
        /// The longest time that an answer was held.
        held: Duration,
        time: Duration,
    }

    /// A device that answers at once. Time passes only as driver and device say.
    fn run(requests: u32, driver: &Driver) -> Run {
        let &Driver { depth, gap, looks } = driver;
        let mut it = Coalescing::new();
        let begin = Instant::now();
        let mut now = begin;
        let mut run = Run { interrupts: 0, in_vain: 0, held: Duration::ZERO, time: Duration::ZERO };
        // Requests whose answers the driver has not seen, and when the oldest that is held was given.
        let (mut under_way, mut oldest, mut offered) = (0, None, 0);
        let mut free = gap; // Time that the driver had for more requests.
        while offered < requests {
            let mut came = 0;
            while free >= gap && under_way < depth {
                free -= gap;
                (came, under_way) = (came + 1, under_way + 1);
                it.answered();
            }
            if looks {
                (under_way, free) = (0, Duration::ZERO);
            }
            offered += came;
            it.looked(came, now);
            if came > 0 {
                oldest.get_or_insert(now);
            }
            // As the worker of a disk does.
            if let Some(wait) = it.wait(came > 0, now) {
                now += wait;
                free = if under_way < depth { free + wait } else { Duration::ZERO };
                continue;
            }
            run.in_vain += u32::from(came == 0);
            run.interrupts += 1;
            run.held = run.held.max(now.duration_since(oldest.take().unwrap()));
            it.told();
            // The device wakes with the next request.
            (under_way, free) = (0, gap);
            now += if looks { gap } else { gap * 2 };
        }
        run.time = now - begin;
        run
    }

    #[test]
    fn a_lone_request_is_answered_at_once() {
        let mut it = Coalescing::new();
        let now = Instant::now();
        it.answered();
        it.looked(1, now);
        assert!(it.is_due(now));
        assert_eq!(it.wait(true, now), None);
    }

    #[test]
    fn without_an_answer_there_is_nothing_to_hold() {
        let mut it = Coalescing { limit: 8, gap: 100 * MICROSECOND, ..Coalescing::new() };
        let now = Instant::now();
        it.looked(1, now);
        assert_eq!(it.wait(true, now), None);
    }

    #[test]
    fn a_driver_that_waits_for_each_answer_is_hardly_ever_delayed() {
        for gap in [100 * MICROSECOND, 300 * MICROSECOND, 3000 * MICROSECOND] {
            let run = run(10_000, &Driver { depth: 1, gap, looks: false });
            assert_eq!(run.interrupts, 10_000);
            assert!((1..20).contains(&run.in_vain), "{}", run.in_vain);
            assert!(run.held <= LONGEST_WAIT);
        }
    }

    #[test]
    fn a_driver_that_goes_on_gets_few_interrupts() {
        for (depth, at_most) in [(4, 400), (8, 200), (32, 100), (256, 100)] {
            for gap in [60 * MICROSECOND, 200 * MICROSECOND] {
                let run = run(1000, &Driver { depth, gap, looks: false });
                assert!(run.interrupts <= at_most, "depth {depth}: {}", run.interrupts);
                assert!(run.held <= LONGEST_HOLD + gap, "depth {depth}: {:?}", run.held);
            }
        }
    }

    #[test]
    fn a_driver_that_finds_answers_by_itself_is_hardly_ever_delayed() {
        for gap in [60 * MICROSECOND, 300 * MICROSECOND, 3000 * MICROSECOND] {
            let run = run(10_000, &Driver { depth: 1, gap, looks: true });
            assert!(run.time < 10_200 * gap, "{gap:?}: {:?}", run.time);
        }
    }

    #[test]
    fn requests_in_quick_succession_are_not_held() {
        let run = run(1000, &Driver { depth: 32, gap: 10 * MICROSECOND, looks: false });
        assert_eq!((run.interrupts, run.in_vain, run.held), (1000, 0, Duration::ZERO));
    }

    #[test]
    fn the_oldest_answer_limits_the_wait() {
        let mut it = Coalescing { limit: 32, gap: 200 * MICROSECOND, ..Coalescing::new() };
        let begin = Instant::now();
        it.answered();
        it.looked(1, begin);
        assert_eq!(it.wait(true, begin), Some(400 * MICROSECOND));
        let late = begin + LONGEST_HOLD - 100 * MICROSECOND;
        it.answered();
        it.looked(1, late);
        assert_eq!(it.wait(true, late), Some(100 * MICROSECOND));
        assert!(!it.is_due(late));
        assert!(it.is_due(begin + LONGEST_HOLD));
        assert_eq!(it.wait(true, begin + LONGEST_HOLD), None);
    }

    #[test]
    fn a_wait_that_is_cut_short_goes_on() {
        let mut it = Coalescing { limit: 4, gap: 100 * MICROSECOND, ..Coalescing::new() };
        let now = Instant::now();
        it.answered();
        it.looked(1, now);
        assert_eq!(it.wait(true, now), Some(200 * MICROSECOND));
        assert_eq!(it.wait(false, now + 50 * MICROSECOND), Some(150 * MICROSECOND));
        assert_eq!(it.wait(true, now + 60 * MICROSECOND), Some(200 * MICROSECOND));
        assert_eq!(it.wait(false, now + 260 * MICROSECOND), None);
        it.told();
        assert_eq!(it.limit, 1, "nothing came");
    }

    #[test]
    fn after_a_pause_of_the_driver_the_waits_are_still_short() {
        let mut it = Coalescing { limit: 32, ..Coalescing::new() };
        let now = Instant::now();
        it.looked(1, now);
        let later = now + Duration::from_secs(3600);
        it.answered();
        it.looked(1, later);
        assert_eq!(it.wait(true, later), Some(LONGEST_WAIT));
    }
}
