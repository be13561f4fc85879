//! The timeline of a boot, drawn.

use std::{fmt::Write, time::Duration};

use sparkler::{Milestone, Timeline};

/// Columns for the bars.
const WIDTH: u128 = 40;

/// One line per event: when it was, how long it took, and a bar from the event before to this one.
pub(crate) fn waterfall(timeline: &Timeline) -> String {
    let events: Vec<_> = timeline.events().iter().map(|e| (e.name().into_owned(), e.at)).collect();
    let is_boot = |milestone| !matches!(milestone, Milestone::Ended | Milestone::TornDown);
    let boot = timeline.events().iter().rfind(|e| is_boot(e.milestone)).map(|e| e.at);
    draw(&events, boot.unwrap_or_default())
}

/// Draws the events; the last of the boot was at `boot`.
fn draw(events: &[(String, Duration)], boot: Duration) -> String {
    let end = events.last().map_or(Duration::ZERO, |e| e.1);
    // A long run after the boot must not dwarf it.
    let span = if end / 4 > boot && !boot.is_zero() { boot + boot / 4 } else { end };
    let name_width = events.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    let mut lines = format!("{:name_width$}  {:>10}  {:>10}\n", "", "at ms", "took ms");
    let mut before = Duration::ZERO;
    for (name, at) in events {
        let (at_ms, took_ms) = (milliseconds(*at), milliseconds(at.saturating_sub(before)));
        let bar = bar(before, *at, span);
        // Writing to a String does not fail.
        let _ = writeln!(lines, "{name:name_width$}  {at_ms:>10.3}  {took_ms:>10.3}  {bar}");
        before = *at;
    }
    lines
}

pub(crate) fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

fn bar(from: Duration, to: Duration, span: Duration) -> String {
    let column = |at: Duration| {
        let column = at.as_nanos().saturating_mul(WIDTH).checked_div(span.as_nanos()).unwrap_or(0);
        usize::try_from(column.min(WIDTH)).unwrap_or(0)
    };
    let (start, end) = (column(from), column(to));
    let mut bar = " ".repeat(start) + &"█".repeat(end.saturating_sub(start));
    if to > span {
        bar.push('…');
    } else if start == end {
        bar.push('▏');
    }
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(events: &[(&str, Duration)], boot: Duration) -> String {
        let events: Vec<_> = events.iter().map(|&(name, at)| (name.to_owned(), at)).collect();
        draw(&events, boot)
    }

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn bars_follow_one_another_over_the_whole_width() {
        let drawn = drawn(&[("memory", ms(10)), ("kernel", ms(30)), ("end", ms(40))], ms(30));
        let lines: Vec<_> = drawn.lines().collect();
        assert_eq!(lines[0], "             at ms     took ms");
        assert_eq!(lines[1], format!("memory      10.000      10.000  {}", "█".repeat(10)));
        assert_eq!(
            lines[2],
            format!("kernel      30.000      20.000  {:10}{}", "", "█".repeat(20))
        );
        assert_eq!(
            lines[3],
            format!("end         40.000      10.000  {:30}{}", "", "█".repeat(10))
        );
    }

    #[test]
    fn a_long_run_after_the_boot_does_not_dwarf_it() {
        let hour = ms(3_600_000);
        let events =
            [("memory", ms(10)), ("kernel", ms(40)), ("ended", hour), ("gone", hour + ms(1))];
        let drawn = drawn(&events, ms(40));
        let lines: Vec<_> = drawn.lines().collect();
        assert!(lines[2].ends_with(&"█".repeat(24)), "{drawn}");
        assert!(lines[3].ends_with("█…"), "{drawn}");
        assert!(lines[4].ends_with(" …"), "{drawn}");
    }

    #[test]
    fn instants_that_coincide_go_back_or_are_extreme_are_drawn() {
        assert!(drawn(&[("a", ms(1)), ("b", ms(1))], ms(1)).contains('▏'));
        assert_eq!(drawn(&[("a", ms(0)), ("b", ms(0))], ms(0)).lines().count(), 3);
        assert_eq!(drawn(&[("a", ms(5)), ("b", ms(1))], ms(5)).lines().count(), 3);
        assert_eq!(drawn(&[("a", Duration::MAX)], Duration::MAX).lines().count(), 2);
        assert_eq!(drawn(&[], ms(0)).lines().count(), 1);
    }
}
