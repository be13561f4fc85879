//! Monitors that take turns at the rows of a table, and what the command line says of both.

use std::error::Error;
use std::fmt::Display;
use std::path::PathBuf;

use crate::samples::{self, Line, Sample, Sink, percentile};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// How often a monitor may try one round: in the lab, machines stand still now and then.
const TRIES: u32 = 3;

/// `--runs=N --seconds=N --row=PART --monitor=PART`, and `--out=FILE` or `--table=FILE …`
#[derive(Debug, Default)]
pub struct Turns {
    /// How often each monitor runs.
    pub runs: u32,
    /// How long each row is measured.
    pub seconds: u32,
    row: String,
    monitor: String,
    out: Option<PathBuf>,
    tables: Vec<PathBuf>,
}

/// All that was measured of rows, by row and monitor.
#[derive(Debug, Default, PartialEq)]
pub struct Measured(Vec<Sample>);

/// One thing that was measured of a row, in each run; at least one.
#[derive(Debug, PartialEq)]
pub struct Values(Vec<f64>);

impl Turns {
    /// As the command line says; three runs, and so many seconds, where it says nothing.
    ///
    /// # Errors
    /// If it says something else.
    pub fn of_command_line(seconds: u32) -> Result<Self> {
        let mut turns = Self { runs: 3, seconds, ..Self::default() };
        for argument in std::env::args().skip(1) {
            match argument.split_once('=') {
                Some(("--runs", count)) => turns.runs = count.parse()?,
                Some(("--seconds", count)) => turns.seconds = count.parse()?,
                Some(("--row", part)) => part.clone_into(&mut turns.row),
                Some(("--monitor", part)) => part.clone_into(&mut turns.monitor),
                Some(("--out", file)) => turns.out = Some(file.into()),
                Some(("--table", file)) => turns.tables.push(file.into()),
                _ => {
                    let flags = "--runs=N, --seconds=N, --row=PART, --monitor=PART, \
                                 --out=FILE and --table=FILE";
                    return Err(format!("no flag {argument}; there are {flags}").into());
                }
            }
        }
        Ok(turns)
    }

    /// What other runs have measured, if the command line names files of theirs: nothing is to be measured
    /// then.
    ///
    /// # Errors
    /// If one of them cannot be read.
    pub fn others(&self) -> Result<Option<Measured>> {
        let mut measured = Measured::default();
        for file in &self.tables {
            measured.0.extend(samples::read(file)?.into_iter().filter_map(|line| match line {
                Line::Sample(sample) => Some(sample),
                _ => None,
            }));
        }
        Ok((!self.tables.is_empty()).then_some(measured))
    }

    /// Writes what was measured to the file that the command line names. False: it names none.
    ///
    /// # Errors
    /// If it cannot be written, or is nothing.
    pub fn write(&self, measured: &Measured) -> Result<bool> {
        if measured.is_empty() {
            return Err("nothing was measured".into());
        }
        let Some(file) = &self.out else { return Ok(false) };
        let mut sink = Sink::create(file)?;
        for sample in &measured.0 {
            sink.add(&Line::Sample(sample.clone()))?;
        }
        Ok(true)
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

    /// Lets each monitor run in turn. `run` gives the figures of the rows that it came to, in their order,
    /// each with its name. For those that it did not come to, since the machine stood still or broke down,
    /// it has further tries. What it never comes to is left out of that round: the others can still be
    /// compared.
    pub fn take<R, M: Display + Copy, const N: usize>(
        &self,
        monitors: &[M],
        rows: &[&'static R],
        name: fn(&R) -> &'static str,
        mut run: impl FnMut(M, &[&'static R]) -> Result<Vec<[(&'static str, f64); N]>>,
    ) -> Measured {
        let mut measured = Measured::default();
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
                        measured.add(name(row), &monitor.to_string(), figures);
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

impl Measured {
    /// What was to be measured for each of nothing is no number, and left out.
    fn add<const N: usize>(&mut self, row: &str, who: &str, figures: [(&'static str, f64); N]) {
        let figures = figures.into_iter().filter(|(_, value)| value.is_finite());
        self.0.extend(figures.map(|(metric, value)| Sample {
            section: String::new(),
            row: row.to_owned(),
            metric: metric.to_owned(),
            who: who.to_owned(),
            value,
        }));
    }

    /// Whether nothing was measured at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What was measured under this name.
    #[must_use]
    pub fn of(&self, row: &str, who: &str, metric: &str) -> Option<Values> {
        let samples = self.0.iter();
        let of = samples.filter(|it| (&*it.row, &*it.who, &*it.metric) == (row, who, metric));
        let mut values: Vec<_> = of.map(|sample| sample.value).collect();
        values.sort_by(f64::total_cmp);
        (!values.is_empty()).then_some(Values(values))
    }
}

impl Values {
    /// The one in the middle.
    #[must_use]
    pub fn median(&self) -> f64 {
        percentile(&self.0, 0.5)
    }

    /// The least and the greatest.
    #[must_use]
    pub fn range(&self) -> (f64, f64) {
        (percentile(&self.0, 0.0), percentile(&self.0, 1.0))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn turns(row: &str) -> Turns {
        Turns { runs: 3, seconds: 1, row: row.into(), ..Turns::default() }
    }

    fn values(measured: &Measured, row: &str, who: &str) -> Option<Vec<f64>> {
        measured.of(row, who, "result").map(|values| values.0)
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
            &["x"],
            &ROWS,
            |row| row,
            |_, rows| {
                tried.push(rows.iter().copied().copied().collect::<String>());
                match tried.len() {
                    1 => Ok(vec![[("result", 10.0)]]),
                    2 => Err("it broke".into()),
                    count => Ok(vec![[("result", count as f64)]; rows.len()]),
                }
            },
        );
        assert_eq!(tried, ["abc", "bc", "bc", "abc", "abc"]);
        assert_eq!(values(&measured, "a", "x").unwrap(), [4.0, 5.0, 10.0]);
        assert_eq!(values(&measured, "b", "x").unwrap(), [3.0, 4.0, 5.0]);
    }

    #[test]
    fn what_never_works_is_left_out() {
        let mut tries = 0;
        let measured = turns("").take(
            &["x", "y"],
            &[&"a"],
            |row| row,
            |monitor, _| {
                tries += u32::from(monitor == "x");
                if monitor == "x" { Err("no".into()) } else { Ok(vec![[("result", 7.0)]]) }
            },
        );
        assert_eq!(tries, 3 * TRIES);
        assert_eq!(values(&measured, "a", "x"), None);
        assert_eq!(values(&measured, "a", "y").unwrap(), [7.0; 3]);
    }

    #[test]
    fn runs_of_several_files_make_one_table() {
        let folder = tempfile::tempdir().unwrap();
        let files = [folder.path().join("1"), folder.path().join("2")];
        for (file, value) in files.iter().zip([24.0, 16.0]) {
            let turns = Turns { runs: 1, out: Some(file.clone()), ..turns("") };
            let row = |_, _: &[&'static &str]| {
                Ok(vec![[("result", value), ("exits", 1.0), ("cpu", f64::INFINITY)]])
            };
            let measured = turns.take(&["x"], &[&"a"], |row| row, row);
            assert!(turns.write(&measured).unwrap());
        }
        let turns = Turns { tables: files.to_vec(), ..turns("") };
        let measured = turns.others().unwrap().unwrap();
        assert_eq!(values(&measured, "a", "x").unwrap(), [16.0, 24.0]);
        assert_eq!(measured.of("a", "x", "exits").unwrap().range(), (1.0, 1.0));
        assert_eq!(measured.of("a", "x", "cpu"), None);
        assert!(!turns.write(&measured).unwrap());
        assert!(turns.write(&Measured::default()).is_err());
    }

    #[test]
    fn the_middle_one_stands_for_all() {
        let values = Values(vec![16.0, 22.0, 24.0]);
        assert_eq!((values.median(), values.range()), (22.0, (16.0, 24.0)));
    }
}
