//! Monitors that take turns at the rows of a table, and what the command line says of both.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often a monitor may try one round: in the lab, machines stand still now and then.
const TRIES: u32 = 3;

/// Every figure that was measured, by row and monitor.
pub type Measured<M, F> = BTreeMap<(&'static str, M), Vec<F>>;

/// `--runs=N --seconds=N --row=PART --monitor=PART`
#[derive(Debug)]
pub struct Turns {
    /// How often each monitor runs.
    pub runs: u32,
    /// How long each row is measured.
    pub seconds: u32,
    row: String,
    monitor: String,
}

impl Turns {
    /// As the command line says; three runs, and so many seconds, where it says nothing.
    ///
    /// # Errors
    /// If it says something else.
    pub fn of_command_line(seconds: u32) -> Result<Self> {
        let mut turns = Self { runs: 3, seconds, row: String::new(), monitor: String::new() };
        for argument in std::env::args().skip(1) {
            match argument.split_once('=') {
                Some(("--runs", count)) => turns.runs = count.parse()?,
                Some(("--seconds", count)) => turns.seconds = count.parse()?,
                Some(("--row", part)) => part.clone_into(&mut turns.row),
                Some(("--monitor", part)) => part.clone_into(&mut turns.monitor),
                _ => {
                    let flags = "--runs=N, --seconds=N, --row=PART and --monitor=PART";
                    return Err(format!("no flag {argument}; there are {flags}").into());
                }
            }
        }
        Ok(turns)
    }

    /// Those of `all` rows whose name contains what was asked for.
    ///
    /// # Errors
    /// If there is none.
    pub fn rows<R>(&self, all: &'static [R], name: fn(&R) -> &str) -> Result<Vec<&'static R>> {
        chosen(all, &self.row, |row| name(row).to_owned())
    }

    /// Those of `all` monitors whose name contains what was asked for.
    ///
    /// # Errors
    /// If there is none.
    pub fn monitors<M: Display + Copy>(&self, all: &[M]) -> Result<Vec<M>> {
        let chosen = chosen(all, &self.monitor, M::to_string)?;
        Ok(chosen.into_iter().copied().collect())
    }

    /// Lets each monitor run in turn. `run` gives the figures of the rows that it came to, in their order.
    /// For those that it did not come to, since the machine stood still or broke down, it has further
    /// tries. What it never comes to is left out of that round: the others can still be compared.
    pub fn take<R, M: Display + Copy + Ord, F>(
        &self,
        monitors: &[M],
        rows: &[&'static R],
        name: fn(&R) -> &'static str,
        mut run: impl FnMut(M, &[&'static R]) -> Result<Vec<F>>,
    ) -> Measured<M, F> {
        let mut measured = Measured::new();
        for round in 1..=self.runs {
            for &monitor in monitors {
                eprintln!("run {round} of {}: {monitor}", self.runs);
                let mut rest = rows;
                for _ in 0..TRIES {
                    let figures = run(monitor, rest).unwrap_or_else(|error| {
                        println!("run {round}, {monitor}: {error}");
                        Vec::new()
                    });
                    let (done, missing) = rest.split_at(figures.len().min(rest.len()));
                    for (row, figures) in done.iter().zip(figures) {
                        measured.entry((name(row), monitor)).or_insert_with(Vec::new).push(figures);
                    }
                    rest = missing;
                    let Some(row) = rest.first() else { break };
                    println!("run {round}, {monitor}: broke down at {:?}", name(row));
                }
            }
        }
        measured
    }
}

fn chosen<'a, T>(all: &'a [T], part: &str, name: impl Fn(&T) -> String) -> Result<Vec<&'a T>> {
    let chosen: Vec<_> = all.iter().filter(|it| name(it).contains(part)).collect();
    if chosen.is_empty() {
        let names = all.iter().map(name).collect::<Vec<_>>().join("; ");
        return Err(format!("nothing has {part:?} in its name; there are {names}").into());
    }
    Ok(chosen)
}

/// The median of the figures; not a number if there is none.
pub fn median<F>(figures: &[F], value: impl Fn(&F) -> f64) -> f64 {
    let mut values: Vec<_> = figures.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The least and the greatest of the figures.
pub fn range<F>(figures: &[F], value: impl Fn(&F) -> f64) -> (f64, f64) {
    let all = (f64::INFINITY, f64::NEG_INFINITY);
    figures.iter().map(value).fold(all, |(low, high), value| (low.min(value), high.max(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(row: &str) -> Turns {
        Turns { runs: 3, seconds: 1, row: row.into(), monitor: String::new() }
    }

    #[test]
    fn what_is_not_there_cannot_be_chosen() {
        const ROWS: &[&str] = &["read, 1", "read, 32", "write, 1"];
        assert_eq!(turns("read").rows(ROWS, |it| it).unwrap(), [&"read, 1", &"read, 32"]);
        assert_eq!(turns("").rows(ROWS, |it| it).unwrap().len(), 3);
        let error = turns("erase").rows(ROWS, |it| it).unwrap_err().to_string();
        assert!(error.contains("erase") && error.contains("read, 32"), "{error}");
    }

    #[test]
    fn what_breaks_down_is_tried_again_where_it_did() {
        const ROWS: [&&str; 3] = [&"a", &"b", &"c"];
        let mut tried = Vec::new();
        let measured = turns("").take(
            &[1],
            &ROWS,
            |row| row,
            |_, rows| {
                tried.push(rows.iter().copied().copied().collect::<String>());
                match tried.len() {
                    1 => Ok(vec![10]),
                    2 => Err("it broke".into()),
                    count => Ok(vec![count; rows.len()]),
                }
            },
        );
        assert_eq!(tried, ["abc", "bc", "bc", "abc", "abc"]);
        assert_eq!(measured[&("a", 1)], [10, 4, 5]);
        assert_eq!(measured[&("b", 1)], [3, 4, 5]);
    }

    #[test]
    fn what_never_works_is_left_out() {
        let mut tries = 0;
        let measured = turns("").take(
            &[1, 2],
            &[&"a"],
            |row| row,
            |monitor, _| {
                tries += u32::from(monitor == 1);
                if monitor == 1 { Err("no".into()) } else { Ok(vec![7]) }
            },
        );
        assert_eq!(tries, 3 * TRIES);
        assert_eq!(measured.get(&("a", 1)), None);
        assert_eq!(measured[&("a", 2)], [7; 3]);
    }

    #[test]
    fn the_middle_one_stands_for_all() {
        assert_eq!(median(&[24, 16, 22], |it| f64::from(*it)), 22.0);
        assert_eq!(range(&[24, 16, 22], |it| f64::from(*it)), (16.0, 24.0));
        assert!(median(&[], |it: &f64| *it).is_nan());
    }
}
