use std::borrow::Cow;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// When what happened, from the call of `build` to the end of the machine.
///
/// Instants are monotonic, in nanoseconds since [`VmBuilder::build`](crate::VmBuilder::build) was
/// called. A guest adds to it by writing to the boot-mark port (0xf8); at most
/// [`MAX_MARKS`](Self::MAX_MARKS) marks are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Timeline {
    events: Vec<Event>,
    marks_dropped: u64,
}

impl Timeline {
    /// Boot marks kept of one machine; further ones are counted only.
    pub const MAX_MARKS: usize = 256;

    /// The events so far, in the order of their time.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The time of the first event of this kind.
    #[must_use]
    pub fn at(&self, milestone: Milestone) -> Option<Duration> {
        self.events.iter().find(|event| event.milestone == milestone).map(|event| event.at)
    }

    /// Boot marks that came after the first [`MAX_MARKS`](Self::MAX_MARKS).
    #[must_use]
    pub fn marks_dropped(&self) -> u64 {
        self.marks_dropped
    }
}

/// One point of a [`Timeline`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened.
    pub milestone: Milestone,
    /// When, since `build` was called.
    pub at: Duration,
}

impl Event {
    /// The name of the milestone, as in `guest entered` or `boot mark 1`.
    #[must_use]
    pub fn name(&self) -> Cow<'static, str> {
        self.milestone.name()
    }
}

/// What a [`Timeline`] records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Milestone {
    /// Guest memory is reserved in this process.
    MemoryMapped,
    /// Kernel, initrd, tables and command line are in guest memory.
    KernelLoaded,
    /// KVM has the machine: memory slots, interrupt controller, vCPUs.
    KvmReady,
    /// `build` returns.
    Built,
    /// `start` was called.
    Started,
    /// The first vCPU is about to run its first guest instruction.
    GuestEntered,
    /// The guest wrote this number to the boot-mark port.
    Mark(u8),
    /// The machine was reset and starts anew. These count among the marks, as a guest can make as many.
    Restarted,
    /// The guest has ended or was stopped.
    Ended,
    /// Every thread is joined and the console is drained.
    TornDown,
}

impl Milestone {
    fn name(self) -> Cow<'static, str> {
        match self {
            Self::MemoryMapped => "memory mapped".into(),
            Self::KernelLoaded => "kernel loaded".into(),
            Self::KvmReady => "KVM ready".into(),
            Self::Built => "built".into(),
            Self::Started => "started".into(),
            Self::GuestEntered => "guest entered".into(),
            Self::Mark(number) => format!("boot mark {number}").into(),
            Self::Restarted => "restarted".into(),
            Self::Ended => "ended".into(),
            Self::TornDown => "torn down".into(),
        }
    }
}

impl fmt::Display for Milestone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name())
    }
}

/// Collects a [`Timeline`] from several threads.
#[derive(Debug)]
pub(crate) struct Recorder {
    origin: Instant,
    timeline: Mutex<Timeline>,
}

impl Recorder {
    /// Starts the clock.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now(), timeline: Mutex::default() }
    }

    /// Records that `milestone` is reached now. Marks of the guest are bounded.
    pub(crate) fn record(&self, milestone: Milestone) {
        let at = self.origin.elapsed();
        let mut timeline = self.timeline.lock().unwrap_or_else(PoisonError::into_inner);
        let is_mark = |milestone| matches!(milestone, Milestone::Mark(_) | Milestone::Restarted);
        let marks = timeline.events.iter().filter(|event| is_mark(event.milestone)).count();
        if is_mark(milestone) && marks >= Timeline::MAX_MARKS {
            timeline.marks_dropped = timeline.marks_dropped.saturating_add(1);
            return;
        }
        // Two threads may take their time in one order and the lock in the other.
        let position = timeline.events.partition_point(|event| event.at <= at);
        timeline.events.insert(position, Event { milestone, at });
    }

    pub(crate) fn snapshot(&self) -> Timeline {
        self.timeline.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_cannot_grow_it() {
        let recorder = Recorder::start();
        for _ in 0..1000 {
            recorder.record(Milestone::Mark(9));
        }
        recorder.record(Milestone::Ended);
        let timeline = recorder.snapshot();
        assert_eq!(timeline.events().len(), Timeline::MAX_MARKS + 1);
        assert_eq!(timeline.marks_dropped(), 1000 - 256);
        assert!(timeline.events().windows(2).all(|pair| pair[0].at <= pair[1].at));
        assert_eq!(timeline.at(Milestone::Ended), Some(timeline.events().last().unwrap().at));
    }
}
