//! Figures, one a run, as they pass from the programs that measure to the one that reports.

use std::error::Error;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::Path;

use serde_json::{Value, json};

/// One figure of one run.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    /// The part of the report.
    pub section: String,
    /// What work was done.
    pub row: String,
    /// What of it was measured, with the unit after a comma: `wall, ms`.
    pub metric: String,
    /// Who did the work.
    pub who: String,
    /// The figure.
    pub value: f64,
}

/// A line of a file of figures.
#[derive(Debug, Clone, PartialEq)]
pub enum Line {
    /// A figure.
    Sample(Sample),
    /// What could not be measured, and why.
    Gap(String),
    /// Something about the machine or the run that belongs into the report: its name and its value.
    Fact(String, String),
}

/// A file of figures that is being written, a JSON object a line.
#[derive(Debug)]
pub struct Sink(BufWriter<File>);

impl Sink {
    /// Begins a new file.
    ///
    /// # Errors
    /// If it cannot be created.
    pub fn create(path: &Path) -> std::io::Result<Self> {
        Ok(Self(BufWriter::new(File::create(path)?)))
    }

    /// Adds a line.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn add(&mut self, line: &Line) -> std::io::Result<()> {
        writeln!(self.0, "{}", line.to_json())?;
        self.0.flush()
    }
}

/// Reads a whole file of figures.
///
/// # Errors
/// If it cannot be read, or a line is none of ours.
pub fn read(path: &Path) -> Result<Vec<Line>, Box<dyn Error>> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut lines = Vec::new();
    for text in BufReader::new(file).lines() {
        let value: Value = serde_json::from_str(&text?)?;
        lines.push(Line::from_json(&value).ok_or_else(|| format!("no figure: {value}"))?);
    }
    Ok(lines)
}

impl Line {
    fn to_json(&self) -> Value {
        match self {
            Self::Sample(Sample { section, row, metric, who, value }) => json!({
                "section": section, "row": row, "metric": metric, "who": who, "value": value
            }),
            Self::Gap(why) => json!({ "gap": why }),
            Self::Fact(name, value) => json!({ "fact": name, "value": value }),
        }
    }

    fn from_json(json: &Value) -> Option<Self> {
        let text = |key| Some(json.get(key)?.as_str()?.to_owned());
        if let Some(why) = text("gap") {
            return Some(Self::Gap(why));
        }
        if let Some(name) = text("fact") {
            return Some(Self::Fact(name, text("value")?));
        }
        Some(Self::Sample(Sample {
            section: text("section")?,
            row: text("row")?,
            metric: text("metric")?,
            who: text("who")?,
            value: json.get("value")?.as_f64()?,
        }))
    }
}

/// The value below which a share of the values lies, by the nearest rank; NaN of no values.
#[must_use]
pub fn percentile(sorted: &[f64], share: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Saturates, and is small.
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let lines = [
            Line::Sample(Sample {
                section: "boot".into(),
                row: "minimal, 1 vCPU".into(),
                metric: "init, ms".into(),
                who: "sparkler".into(),
                value: 1.5,
            }),
            Line::Gap("none: \"why\"".into()),
            Line::Fact("kernel".into(), "6.12".into()),
        ];
        let mut sink = Sink::create(file.path()).unwrap();
        lines.iter().for_each(|line| sink.add(line).unwrap());
        assert_eq!(read(file.path()).unwrap(), lines);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let sorted: Vec<f64> = (1..=20).map(f64::from).collect();
        assert!((percentile(&sorted, 0.5) - 10.0).abs() < f64::EPSILON);
        assert!((percentile(&sorted, 0.95) - 19.0).abs() < f64::EPSILON);
        assert!((percentile(&sorted, 0.99) - 20.0).abs() < f64::EPSILON);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
