//! What the figures should be, and whether they are.

use crate::figures::Figures;

/// A row of a report, a metric of it, and who did it.
type Place = (&'static str, &'static str, &'static str, &'static str);

enum Goal {
    /// The first's median is at most so many times the second's.
    Ratio(&'static str, Place, Place, f64),
    /// The median is at most this.
    AtMost(&'static str, Place, f64),
}

const FIRST: &str = "first instruction, ms";
const EXIT: &str = "exit, ms";
const MICROVM: &str = "kernel for microVMs";
const PRIVATE: &str = "private beside guest memory, KiB";
const PER_SECOND: &str = "machines a second";
const LOOP: &str = "one after another";
const QEMU: &str = "QEMU microvm";
const OURS: &str = "sparkler";
const MAPPED: &str = "sparkler --map-kernel";

/// The size of the binary that still counts as small.
const BINARY_BYTES: u64 = 2_500_000;

#[rustfmt::skip] // A table.
const GOALS: [Goal; 13] = [
    Goal::Ratio("first instruction, tiny guest, to the floor", ("in process", "tiny guest", FIRST, OURS), ("in process", "tiny guest", FIRST, "floor"), 1.1),
    Goal::Ratio("first instruction, 53 MB guest, to the floor", ("in process", "53 MB guest", FIRST, OURS), ("in process", "53 MB guest", FIRST, "floor"), 1.3),
    Goal::Ratio("first instruction, stock vmlinux, to the floor", ("first instruction", "stock vmlinux", FIRST, OURS), ("first instruction", "stock vmlinux", FIRST, "floor"), 1.3),
    Goal::Ratio("boot, kernel for microVMs, to QEMU", ("boot", MICROVM, EXIT, OURS), ("boot", MICROVM, EXIT, QEMU), 0.75),
    Goal::Ratio("boot, kernel for microVMs, to alioth", ("boot", MICROVM, EXIT, OURS), ("boot", MICROVM, EXIT, "alioth"), 0.85),
    Goal::Ratio("boot, kernel for microVMs, to Firecracker", ("boot", MICROVM, EXIT, OURS), ("boot", MICROVM, EXIT, "Firecracker"), 1.0),
    Goal::Ratio("boot, stock bzImage, to QEMU", ("boot", "stock bzImage", EXIT, OURS), ("boot", "stock bzImage", EXIT, QEMU), 0.75),
    Goal::Ratio("boot, stock bzImage, to alioth", ("boot", "stock bzImage", EXIT, OURS), ("boot", "stock bzImage", EXIT, "alioth"), 0.85),
    Goal::Ratio("boot, stock vmlinux, to Firecracker", ("boot", "stock vmlinux", EXIT, OURS), ("boot", "stock vmlinux", EXIT, "Firecracker"), 1.0),
    Goal::AtMost("private memory beside the guest's, KiB", ("memory", "tiny guest", PRIVATE, OURS), 2048.0),
    Goal::AtMost("the same under the kernel for microVMs, KiB", ("memory", MICROVM, PRIVATE, OURS), 2048.0),
    Goal::Ratio("a second machine that has read a mapped 53 MB kernel, to the first, in memory", ("memory", "53 MB guest", "second machine, all, MiB", MAPPED), ("memory", "53 MB guest", "first machine, all, MiB", MAPPED), 0.2),
    Goal::Ratio("life of a machine in a loop, to the floor", ("many", LOOP, PER_SECOND, "floor"), ("many", LOOP, PER_SECOND, OURS), 1.1),
];

/// One goal, and what became of it.
pub(crate) struct Verdict {
    pub(crate) goal: &'static str,
    pub(crate) wanted: f64,
    /// Nothing where it was not measured.
    pub(crate) reached: Option<f64>,
}

impl Verdict {
    pub(crate) fn word(&self) -> &'static str {
        match self.reached {
            Some(reached) if reached <= self.wanted => "yes",
            Some(_) => "FALLS SHORT",
            None => "not measured",
        }
    }
}

/// Compares the figures with what they should be.
pub(crate) fn judge(figures: &Figures) -> Vec<Verdict> {
    let median =
        |(section, row, metric, who): Place| Some(figures.get(section, row, metric, who)?.median());
    let mut verdicts: Vec<Verdict> = GOALS
        .iter()
        .map(|goal| match *goal {
            Goal::Ratio(goal, ours, theirs, wanted) => {
                let reached = median(ours).zip(median(theirs)).map(|(ours, theirs)| ours / theirs);
                Verdict { goal, wanted, reached }
            }
            Goal::AtMost(goal, place, wanted) => Verdict { goal, wanted, reached: median(place) },
        })
        .collect();
    let bytes = figures.fact("binary, bytes").and_then(|bytes| bytes.parse::<f64>().ok());
    let (goal, wanted) = ("the binary, MB", BINARY_BYTES as f64 / 1e6);
    verdicts.push(Verdict { goal, wanted, reached: bytes.map(|bytes| bytes / 1e6) });
    verdicts
}
