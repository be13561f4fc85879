//! The whole report, for a terminal and as a page.

use std::fmt::Write;

use crate::figures::Figures;
use crate::goals::Verdict;
use crate::table::{Table, escape};

const NOTE: &str = "Medians, behind each the 95th and the 99th percentile; where there are fewer than \
twenty runs, both are the slowest of them, and a figure without them is of one run. The contestants \
took turns in every round. The floor is a program that does the least that KVM allows to run a guest: \
benches/src/floor.rs. CPU time and peak memory include the guest's.";

/// The tables of each section.
fn sections(figures: &Figures) -> Vec<(&'static str, Vec<Table>)> {
    let tables = |section: &str| match section {
        "exits" => {
            figures.all_rows(section).iter().map(|row| Table::of_exits(figures, row)).collect()
        }
        _ => {
            let metrics = figures.metrics(section);
            metrics.iter().map(|metric| Table::of_metric(figures, section, metric)).collect()
        }
    };
    figures.sections().map(|(name, about)| (about, tables(name))).collect()
}

pub(crate) fn text(figures: &Figures, verdicts: &[Verdict]) -> String {
    let mut text = String::new();
    for (about, tables) in sections(figures) {
        let _ = write!(text, "\n== {about}\n");
        tables.iter().for_each(|table| text += &table.text());
    }
    let _ = write!(text, "\n== {}", Table::of_verdicts(verdicts).text());
    for gap in &figures.gaps {
        let _ = writeln!(text, "not measured: {gap}");
    }
    text
}

pub(crate) fn markdown(
    figures: &Figures,
    verdicts: &[Verdict],
    command: &str,
    charts: &str,
) -> String {
    let mut page = format!("# Boot times\n\nMade by `{command}`.\n\n{NOTE}\n\n");
    for (name, value) in &figures.facts {
        let _ = writeln!(page, "- {name}: {value}");
    }
    let _ = write!(page, "\n## Goals\n\n{}", Table::of_verdicts(verdicts).markdown());
    let _ = write!(page, "\n![Each run of each contestant]({charts})\n");
    for (about, tables) in sections(figures) {
        let _ = write!(page, "\n## {about}\n");
        for table in tables {
            let _ = write!(page, "\n### {}\n\n{}", table.title, table.markdown());
        }
    }
    if !figures.gaps.is_empty() {
        page += "\n## Not measured\n\n";
        figures.gaps.iter().for_each(|gap| page += &format!("- {gap}\n"));
    }
    page
}

pub(crate) fn html(figures: &Figures, verdicts: &[Verdict], command: &str, charts: &str) -> String {
    let mut page = format!(
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>Boot times</title>\n<style>\
         body {{ font: 15px/1.4 sans-serif; max-width: 70em; margin: 2em auto; padding: 0 1em }}\
         table {{ border-collapse: collapse; margin: 1em 0 }}\
         td, th {{ border: 1px solid #ccc; padding: 2px 8px; text-align: left }}\
         svg {{ max-width: 100% }}</style>\n\
         <h1>Boot times</h1>\n<p>Made by <code>{}</code>.</p>\n<p>{NOTE}</p>\n<ul>\n",
        escape(command)
    );
    for (name, value) in &figures.facts {
        let _ = writeln!(page, "<li>{}: {}</li>", escape(name), escape(value));
    }
    let _ = write!(page, "</ul>\n<h2>Goals</h2>\n{}{charts}", Table::of_verdicts(verdicts).html());
    for (about, tables) in sections(figures) {
        let _ = writeln!(page, "<h2>{}</h2>", escape(about));
        for table in tables {
            let _ = write!(page, "<h3>{}</h3>\n{}", escape(&table.title), table.html());
        }
    }
    for gap in &figures.gaps {
        let _ = writeln!(page, "<p>Not measured: {}</p>", escape(gap));
    }
    page
}
