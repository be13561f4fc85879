//! Monitors that take turns at the rows of a table, and what the command line says of both.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Display;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

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

    /// Lets each monitor run in turn. One that fails is told of and left out of that round: the others can
    /// still be compared, and it has further runs. `run` gives the rows that it came to, by name, of the
    /// `names` there are.
    pub fn take<M: Display + Copy + Ord, F>(
        &self,
        monitors: &[M],
        names: &[&str],
        mut run: impl FnMut(M) -> Result<Vec<(&'static str, F)>>,
    ) -> Measured<M, F> {
        let mut measured = Measured::new();
        for round in 1..=self.runs {
            for &monitor in monitors {
                eprintln!("run {round} of {}: {monitor}", self.runs);
                let rows = match run(monitor) {
                    Ok(rows) => rows,
                    Err(error) => {
                        println!("run {round}, {monitor}: {error}");
                        continue;
                    }
                };
                if let Some(name) = names.get(rows.len()) {
                    println!("{monitor} stood still at {name:?} and was ended");
                }
                for (row, figures) in rows {
                    measured.entry((row, monitor)).or_insert_with(Vec::new).push(figures);
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
    fn a_monitor_that_fails_once_is_measured_all_the_same() {
        let mut number = 0;
        let measured = turns("").take(&[1, 2], &["a", "b"], |monitor| {
            number += 1;
            if number == 1 {
                Err("it broke".into())
            } else {
                Ok(vec![("a", monitor * 10 + number)])
            }
        });
        assert_eq!(measured[&("a", 1)], [13, 15]);
        assert_eq!(measured[&("a", 2)], [22, 24, 26]);
        assert_eq!(median(&measured[&("a", 2)], |it| f64::from(*it)), 24.0);
        assert!(median(&[], |it: &f64| *it).is_nan());
    }
}
