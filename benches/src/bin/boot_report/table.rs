//! A table, as text, Markdown and HTML.

use std::fmt::Write;

use crate::figures::{Figures, Group};
use crate::goals::Verdict;

pub(crate) struct Table {
    pub(crate) title: String,
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Table {
    /// Rows down, contestants across: the median, and behind it the 95th and 99th percentile.
    pub(crate) fn of_metric(figures: &Figures, section: &str, metric: &str) -> Self {
        let contestants = figures.contestants(section, metric);
        let row = |row: &&str| {
            let cell = |who: &&str| figures.get(section, row, metric, who).map_or("".into(), cell);
            std::iter::once((*row).to_owned()).chain(contestants.iter().map(cell)).collect()
        };
        let header =
            std::iter::once(String::new()).chain(contestants.iter().map(|it| (*it).into()));
        Self {
            title: metric.to_owned(),
            header: header.collect(),
            rows: figures.rows(section, metric).iter().map(row).collect(),
        }
    }

    /// Reasons down, contestants across, of one kind of boot. Who was not seen to boot has no counts.
    pub(crate) fn of_exits(figures: &Figures, row: &str) -> Self {
        let section = "exits";
        let contestants = figures.all_contestants(section);
        let count = |reason: &str, who: &str| {
            figures.get(section, row, reason, who).map_or(0.0, Group::median)
        };
        let mut reasons = figures.metrics(section);
        let most =
            |reason: &str| contestants.iter().map(|who| count(reason, who)).fold(0.0, f64::max);
        reasons.sort_by(|a, b| most(b).total_cmp(&most(a)));
        reasons.retain(|reason| most(reason) > 0.0);
        let line = |name: &str, count: &dyn Fn(&str) -> f64| -> Vec<String> {
            let counts = contestants.iter().map(|who| match figures.has(section, row, who) {
                true => format!("{:.0}", count(who)),
                false => String::new(),
            });
            std::iter::once(name.to_owned()).chain(counts).collect()
        };
        let total = |who: &str| reasons.iter().map(|reason| count(reason, who)).sum();
        let mut rows = vec![line("all", &total)];
        rows.extend(reasons.iter().map(|reason| line(reason, &|who| count(reason, who))));
        let header =
            std::iter::once(String::new()).chain(contestants.iter().map(|it| (*it).into()));
        Self { title: row.to_owned(), header: header.collect(), rows }
    }

    pub(crate) fn of_verdicts(verdicts: &[Verdict]) -> Self {
        let row = |it: &Verdict| {
            let reached = it.reached.map_or("".into(), |reached| format!("{reached:.2}"));
            vec![it.goal.into(), format!("{:.2}", it.wanted), reached, it.word().into()]
        };
        Self {
            title: "Goals".into(),
            header: ["", "at most", "reached", ""].map(String::from).into(),
            rows: verdicts.iter().map(row).collect(),
        }
    }

    pub(crate) fn text(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| {
            let cells = lines().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.header.len()).map(width).collect();
        let mut text = format!("{}\n", self.title);
        for line in lines() {
            for (cell, width) in line.iter().zip(&widths) {
                let _ = write!(text, "  {cell:width$}");
            }
            text.truncate(text.trim_end().len());
            text.push('\n');
        }
        text
    }

    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = format!("|{}\n", "---|".repeat(self.header.len()));
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        format!("{}{rule}{rows}", line(&self.header))
    }

    pub(crate) fn html(&self) -> String {
        let line = |cells: &[String], tag| {
            let cells: String =
                cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escape(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|row| line(row, "td")).collect();
        format!("<table>\n{}{rows}</table>\n", line(&self.header, "th"))
    }
}

fn cell(group: &Group) -> String {
    let [p50, p95, p99] = [0.5, 0.95, 0.99].map(|share| number(group.percentile(share)));
    if group.values.len() == 1 { p50 } else { format!("{p50} ({p95}, {p99})") }
}

/// With three digits that say something.
fn number(value: f64) -> String {
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$}")
}

pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use sparkler_benches::samples::{Line, Sample};

    use super::*;

    #[test]
    fn who_was_not_measured_has_no_zeroes() {
        let mut figures = Figures::default();
        for (row, metric, who) in
            [("a", "msr", "one"), ("a", "cpuid", "two"), ("b", "msr", "three"), ("b", "msr", "two")]
        {
            let [section, row, metric, who] = ["exits", row, metric, who].map(String::from);
            figures.add(Line::Sample(Sample { section, row, metric, who, value: 7.0 }));
        }
        let table = Table::of_exits(&figures, "a");
        assert_eq!(table.header, ["", "one", "two", "three"]);
        assert_eq!(table.rows[0], ["all", "7", "7", ""]);
        assert_eq!(table.rows[1], ["msr", "7", "0", ""]);
        assert_eq!(table.rows[2], ["cpuid", "0", "7", ""]);
    }

    #[test]
    fn a_table_in_three_forms() {
        let cells = |cells: [&str; 2]| cells.map(String::from).to_vec();
        let (header, rows) = (cells(["", "who"]), vec![cells(["a row", "1<2"])]);
        let table = Table { title: "what".into(), header, rows };
        assert_eq!(table.text(), "what\n         who\n  a row  1<2\n");
        assert_eq!(table.markdown(), "|  | who |\n|---|---|\n| a row | 1<2 |\n");
        assert!(table.html().contains("<td>1&lt;2</td>"));
    }
}
