//! When to look at a queue by a timer, instead of being notified of each frame.
//!
//! Where exits are slow, as under nested or emulated virtualization, a notification and an interrupt for
//! every frame are what keeps a guest from sending more. So the card tries now and then whether frames
//! come sooner if it does without both for a while, and goes on with it only if they do. Elsewhere a
//! frame would but wait: there, nearly all are notified of.

use std::mem;
use std::time::{Duration, Instant};

/// A driver whose frames are closer than this needs no help: several come together by themselves. And
/// no thread sleeps for a shorter time, as it is the slack of Linux's timers.
const SHORTEST_GAP: Duration = Duration::from_micros(50);
/// A driver whose frames are farther apart has other things to do; and the longest wait for a frame.
const LONGEST_GAP: Duration = Duration::from_micros(250);
/// After a gap like this the driver was idle, which says nothing about its pace.
const IDLE: Duration = Duration::from_millis(1);
/// After so many of these in a row, nothing is left of what was found out about its pace.
const IDLE_GAPS: u32 = 32;
/// The most frames for one interrupt; no more are needed for it not to matter.
const MOST_HELD: u32 = 32;
/// Over how many frames their pace is measured.
const WINDOW: u32 = 256;
/// For how many windows a trial that works is kept, until the pace without it is measured again.
const KEPT: u32 = 16;
/// How many windows pass from a trial that does not work to the next, at first and at most.
const PAUSES: (u32, u32) = (4, 128);

/// Decides for one queue.
#[derive(Debug)]
pub(super) struct Mitigation {
    mode: Mode,
    /// The window that is being measured.
    window: Window,
    /// How long the last one without a timer took.
    without: Duration,
    /// Until the next trial.
    pause: u32,
    next_pause: u32,
    last_frame: Option<Instant>,
    /// How often the driver was idle since it was not.
    idle: u32,
    /// Frames that the driver was not told of.
    held: u32,
    /// When the next look is due.
    until: Option<Instant>,
}

#[derive(Debug)]
enum Mode {
    /// The driver notifies.
    Notified,
    /// The card looks by itself, for so many windows more.
    Timed(u32),
}

#[derive(Debug, Default)]
struct Window {
    frames: u32,
    time: Duration,
}

impl Mitigation {
    pub(super) fn new() -> Self {
        Self {
            mode: Mode::Notified,
            window: Window::default(),
            without: Duration::ZERO,
            pause: 0,
            next_pause: PAUSES.0,
            last_frame: None,
            idle: 0,
            held: 0,
            until: None,
        }
    }

    /// The card has looked at the queue, and sent so many frames from it.
    pub(super) fn looked(&mut self, frames: u32, now: Instant) {
        if frames == 0 {
            return;
        }
        self.held = self.held.saturating_add(frames);
        if let Some(last) = self.last_frame.replace(now) {
            self.came(frames, now.saturating_duration_since(last));
        }
        self.until = match self.mode {
            Mode::Notified => None,
            // Twice the average, as some come later.
            Mode::Timed(_) => {
                now.checked_add(self.gap_without().saturating_mul(2).min(LONGEST_GAP))
            }
        };
    }

    /// So many frames came after a time.
    fn came(&mut self, frames: u32, passed: Duration) {
        if passed < IDLE {
            self.idle = 0;
            self.window.frames = self.window.frames.saturating_add(frames);
            self.window.time = self.window.time.saturating_add(passed);
            self.decide();
        } else {
            self.idle = self.idle.saturating_add(1);
            if self.idle == IDLE_GAPS {
                (self.mode, self.window) = (Mode::Notified, Window::default());
            }
        }
    }

    /// For how long the driver is neither to be told nor asked for notifications. `None`: both are due.
    pub(super) fn rest(&self, now: Instant) -> Option<Duration> {
        let rest = self.until?.saturating_duration_since(now);
        (self.held < MOST_HELD && !rest.is_zero()).then_some(rest)
    }

    /// The driver was told.
    pub(super) fn told(&mut self) {
        (self.held, self.until) = (0, None);
    }

    /// The average from one frame to the next without a timer.
    fn gap_without(&self) -> Duration {
        self.without.checked_div(WINDOW).unwrap_or_default()
    }

    fn decide(&mut self) {
        match self.mode {
            Mode::Notified if self.window.frames < WINDOW => {}
            Mode::Notified => {
                let Window { frames, time } = mem::take(&mut self.window);
                let all = time.saturating_mul(WINDOW);
                self.without = all.checked_div(frames).unwrap_or_default();
                if self.pause > 0 {
                    self.pause = self.pause.saturating_sub(1);
                } else if (SHORTEST_GAP..=LONGEST_GAP).contains(&self.gap_without()) {
                    self.mode = Mode::Timed(KEPT);
                }
            }
            // By less than an eighth may be chance.
            Mode::Timed(_)
                if self.window.time.saturating_mul(8) > self.without.saturating_mul(7) =>
            {
                self.window = Window::default();
                self.mode = Mode::Notified;
                self.pause = self.next_pause;
                self.next_pause = self.next_pause.saturating_mul(2).min(PAUSES.1);
            }
            Mode::Timed(_) if self.window.frames < WINDOW => {}
            Mode::Timed(left) => {
                self.window = Window::default();
                self.next_pause = PAUSES.0;
                self.mode = match left.checked_sub(1) {
                    Some(left) => Mode::Timed(left),
                    None => Mode::Notified,
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);
    const FRAMES: u32 = 50_000;

    /// When a driver offers its next frame.
    enum Driver {
        /// As soon as it can, so long after the last; a notification and an interrupt take so long each.
        Busy { gap: Duration, exit: Duration },
        /// At its own pace, with pauses in between of which the argument tells.
        Paced(fn(u32) -> Duration),
        /// So long after the last was sent; and so many, then so long nothing.
        Answered { after: Duration, burst: u32, idle: Duration },
    }

    #[derive(Debug)]
    struct Run {
        /// How long frames waited to be sent, all together, and those that did not go at once.
        waited: Duration,
        late: u32,
        interrupts: u32,
        time: Duration,
    }

    /// A card that sends in no time. Time passes only as driver and timers say.
    fn run(driver: &Driver) -> Run {
        let begin = Instant::now();
        let mut it = Mitigation::new();
        let mut run = Run { waited: Duration::ZERO, late: 0, interrupts: 0, time: Duration::ZERO };
        // When the next frame is offered, those which were, and when the card was last awake.
        let (mut next, mut number) = (begin, 0);
        let mut now = begin;
        while number < FRAMES {
            let mut offered = Vec::new();
            while next <= now && number < FRAMES {
                offered.push(next);
                number += 1;
                match driver {
                    Driver::Busy { gap, .. } => next += *gap,
                    Driver::Paced(gap) => next += gap(number),
                    Driver::Answered { after, burst, idle } => {
                        let idle = if number % burst == 0 { *idle } else { Duration::ZERO };
                        next = now + *after + idle;
                    }
                }
            }
            for at in &offered {
                run.waited += now - *at;
                run.late += u32::from(now > *at);
            }
            it.looked(u32::try_from(offered.len()).unwrap(), now);
            now = match it.rest(now) {
                Some(rest) => now + rest.max(SHORTEST_GAP),
                None => {
                    it.told();
                    run.interrupts += u32::from(!offered.is_empty());
                    if let (Driver::Busy { exit, .. }, true) = (driver, next > now) {
                        next += *exit * 2;
                    }
                    next.max(now)
                }
            };
        }
        run.time = now - begin;
        run
    }

    #[test]
    fn a_busy_driver_with_slow_exits_is_looked_at() {
        let (gap, exit) = (60 * MICROSECOND, 30 * MICROSECOND);
        let run = run(&Driver::Busy { gap, exit });
        assert!(run.interrupts < FRAMES / 8, "{run:?}");
        assert!(run.time < FRAMES * (gap + exit), "{run:?}");
    }

    #[test]
    fn a_busy_driver_with_fast_exits_notifies() {
        for gap in [10, 60, 100, 240] {
            let run = run(&Driver::Busy { gap: gap * MICROSECOND, exit: 2 * MICROSECOND });
            assert!(run.late < FRAMES / 30, "{gap}: {run:?}");
        }
    }

    /// No more than one frame of thirty is late, whatever the pace.
    #[track_caller]
    fn assert_hardly_delayed(driver: &Driver) {
        let run = run(driver);
        assert!(run.late < FRAMES / 30, "{run:?}");
        assert!(run.waited < FRAMES * 5 * MICROSECOND, "{run:?}");
    }

    #[test]
    fn paced_frames_are_hardly_delayed() {
        assert_hardly_delayed(&Driver::Paced(|_| 40 * MICROSECOND));
        assert_hardly_delayed(&Driver::Paced(|_| 60 * MICROSECOND));
        assert_hardly_delayed(&Driver::Paced(|_| 100 * MICROSECOND));
        assert_hardly_delayed(&Driver::Paced(|_| 200 * MICROSECOND));
        assert_hardly_delayed(&Driver::Paced(|_| 250 * MICROSECOND));
        assert_hardly_delayed(&Driver::Paced(|_| 1000 * MICROSECOND));
    }

    #[test]
    fn frames_at_random_are_hardly_delayed() {
        /// From nothing to twice the average, without a pattern.
        fn random(number: u32) -> Duration {
            let mixed =
                number.wrapping_mul(0x9e37_79b9) ^ number.wrapping_mul(0x85eb_ca6b).rotate_left(13);
            (mixed.wrapping_mul(0xc2b2_ae35) >> 16) * 200 * MICROSECOND / 65536
        }
        assert_hardly_delayed(&Driver::Paced(random));
    }

    #[test]
    fn a_driver_that_waits_for_answers_is_hardly_delayed() {
        for after in [30, 60, 100, 180, 220, 240, 260, 500] {
            for (burst, idle) in [(1000, 1), (10, 3000), (10, 10_000), (20, 900), (2, 2000)] {
                let (after, idle) = (after * MICROSECOND, idle * MICROSECOND);
                assert_hardly_delayed(&Driver::Answered { after, burst, idle });
            }
        }
    }

    #[test]
    fn a_driver_that_becomes_idle_notifies() {
        let mut it = Mitigation::new();
        (it.mode, it.without) = (Mode::Timed(KEPT), WINDOW * 100 * MICROSECOND);
        let mut now = Instant::now();
        for _ in 0..=IDLE_GAPS {
            it.looked(1, now);
            now += 2 * IDLE;
        }
        it.looked(1, now);
        assert_eq!(it.rest(now), None);
    }

    #[test]
    fn the_driver_is_told_of_many_frames_and_of_late_ones() {
        let mut it = Mitigation::new();
        it.mode = Mode::Timed(KEPT);
        it.without = WINDOW * 100 * MICROSECOND;
        let now = Instant::now();
        assert_eq!(it.rest(now), None, "there is nothing to be told");
        it.looked(1, now);
        assert_eq!(it.rest(now), Some(200 * MICROSECOND));
        assert_eq!(it.rest(now + 150 * MICROSECOND), Some(50 * MICROSECOND));
        assert_eq!(it.rest(now + 200 * MICROSECOND), None);
        it.looked(MOST_HELD - 1, now);
        assert_eq!(it.rest(now), None);
        it.told();
        assert_eq!(it.rest(now), None);
    }
}
