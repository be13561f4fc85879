//! What ran, what did not, and why: counted and shown as one table.

use std::ops::AddAssign;
use std::time::Duration;

/// How many tests ended in each way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    pub(crate) skipped: usize,
}

impl Counts {
    /// One thing that either went well or did not.
    pub(crate) fn one(well: bool) -> Self {
        Self { passed: well.into(), failed: (!well).into(), skipped: 0 }
    }

    /// Adds up every `test result:` line of a test harness's output.
    ///
    /// Tests that the harness ignored are not counted: each belongs to a tier that runs it. A harness
    /// that failed without failing a test (it crashed, or did not compile) counts as one failure.
    pub(crate) fn of_output(output: &str, well: bool) -> Self {
        let mut counts = Self::default();
        for result in output.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            counts += Self {
                passed: number_before(result, " passed"),
                failed: number_before(result, " failed"),
                skipped: 0,
            };
        }
        if !well && counts.failed == 0 {
            counts.failed = 1;
        }
        counts
    }
}

/// The number that ends where `word` begins.
fn number_before(text: &str, word: &str) -> usize {
    let before = text.split_once(word).map_or("", |(before, _)| before);
    before.rsplit(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

struct Row {
    tier: &'static str,
    what: String,
    counts: Counts,
    /// How long it took, or why it was skipped.
    note: String,
}

/// The table, row by row.
#[derive(Default)]
pub(crate) struct Report {
    rows: Vec<Row>,
}

impl Report {
    pub(crate) fn ran(&mut self, tier: &'static str, what: &str, counts: Counts, took: Duration) {
        let note = format!("{:.1} s", took.as_secs_f64());
        self.rows.push(Row { tier, what: what.to_owned(), counts, note });
    }

    pub(crate) fn skipped(&mut self, tier: &'static str, what: &str, tests: usize, why: &str) {
        let counts = Counts { skipped: tests, ..Counts::default() };
        let note = format!("SKIPPED: {why}");
        eprintln!("{tier} {what}: {note}");
        self.rows.push(Row { tier, what: what.to_owned(), counts, note });
    }

    /// Prints the table with its total as the last line, and tells whether nothing failed.
    pub(crate) fn print(&self) -> bool {
        let width = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0);
        println!(
            "\n{:4} {:width$} {:>7} {:>7} {:>7}",
            "tier", "what", "passed", "failed", "skipped"
        );
        let mut total = Counts::default();
        for Row { tier, what, counts, note } in &self.rows {
            let Counts { passed, failed, skipped } = counts;
            println!("{tier:4} {what:width$} {passed:7} {failed:7} {skipped:7}  {note}");
            total += *counts;
        }
        println!("\n{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
        total.failed == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = "test result: ok. 12 passed; 3 failed; 4 ignored; 0 measured; 0 filtered out; finished in 0s";

    #[test]
    fn every_harness_of_an_output_counts() {
        let counts = Counts::of_output(&format!("running 2 tests\n{RESULT}\n\n{RESULT}\n"), false);
        assert_eq!(counts, Counts { passed: 24, failed: 6, skipped: 0 });
    }

    #[test]
    fn a_harness_that_crashed_is_a_failure() {
        assert_eq!(Counts::of_output("running 2 tests\n", false).failed, 1);
    }
}
