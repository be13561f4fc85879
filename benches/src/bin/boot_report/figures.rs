//! All figures of a run, by what they are of.

use sparkler_benches::samples::{Line, Sample, percentile};

/// The sections in the order of the report, and what each is about.
const SECTIONS: [(&str, &str); 7] = [
    (
        "in process",
        "In one process: from the first call to the guest's first instruction, and a machine's whole life",
    ),
    ("first instruction", "From the start of the process to the kernel's first instruction"),
    (
        "boot",
        "From the start of the process to init's first instruction, and to the end of a process whose guest resets itself at once",
    ),
    ("at once", "Eight at once, to the end of each process"),
    ("many", "Many machines in one process"),
    ("memory", "Memory of the process while its guest idles"),
    ("exits", "Exits of the guest, from its first instruction to init's"),
];

/// Who is named in which order; others follow.
const ORDER: [&str; 11] = [
    "floor",
    "sparkler",
    "sparkler --no-acpi",
    "sparkler --map-kernel",
    "sparkler --kernel-cache",
    "QEMU microvm",
    "QEMU microvm, acpi=off",
    "alioth",
    "Firecracker",
    "Cloud Hypervisor",
    "crosvm",
];

/// Everything that goes into a report.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    groups: Vec<Group>,
    pub(crate) gaps: Vec<String>,
    pub(crate) facts: Vec<(String, String)>,
}

/// One figure of one contestant, from all runs.
#[derive(Debug, PartialEq)]
pub(crate) struct Group {
    pub(crate) section: String,
    pub(crate) row: String,
    pub(crate) metric: String,
    pub(crate) who: String,
    /// In ascending order.
    pub(crate) values: Vec<f64>,
}

impl Group {
    pub(crate) fn percentile(&self, share: f64) -> f64 {
        percentile(&self.values, share)
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(0.5)
    }
}

impl Figures {
    pub(crate) fn add(&mut self, line: Line) {
        match line {
            Line::Gap(why) if self.gaps.contains(&why) => {}
            Line::Gap(why) => self.gaps.push(why),
            // What several runs say alike.
            Line::Fact(name, _) if self.facts.iter().any(|(known, _)| *known == name) => {}
            Line::Fact(name, value) => self.facts.push((name, value)),
            Line::Sample(sample) => self.add_sample(sample),
        }
    }

    fn add_sample(&mut self, sample: Sample) {
        let Sample { section, row, metric, who, value } = sample;
        let known = self.groups.iter_mut().find(|group| {
            (&group.section, &group.row, &group.metric, &group.who)
                == (&section, &row, &metric, &who)
        });
        match known {
            Some(group) => group.values.push(value),
            None => self.groups.push(Group { section, row, metric, who, values: vec![value] }),
        }
    }

    /// To be called when all are there.
    pub(crate) fn sort(&mut self) {
        self.groups.iter_mut().for_each(|group| group.values.sort_by(f64::total_cmp));
        let rank = |who: &str| ORDER.iter().position(|name| *name == who).unwrap_or(ORDER.len());
        self.groups.sort_by_key(|group| rank(&group.who));
    }

    /// Names and descriptions of the sections that have figures.
    pub(crate) fn sections(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        SECTIONS.into_iter().filter(|(name, _)| self.groups.iter().any(|it| it.section == *name))
    }

    /// The metrics of a section, in the order of their first figures.
    pub(crate) fn metrics(&self, section: &str) -> Vec<&str> {
        distinct(self.groups.iter().filter(|it| it.section == section).map(|it| &*it.metric))
    }

    pub(crate) fn rows(&self, section: &str, metric: &str) -> Vec<&str> {
        let groups = self.groups.iter().filter(|it| it.section == section && it.metric == metric);
        distinct(groups.map(|it| &*it.row))
    }

    pub(crate) fn contestants(&self, section: &str, metric: &str) -> Vec<&str> {
        let groups = self.groups.iter().filter(|it| it.section == section && it.metric == metric);
        distinct(groups.map(|it| &*it.who))
    }

    /// The rows of a section, whatever was measured.
    pub(crate) fn all_rows(&self, section: &str) -> Vec<&str> {
        distinct(self.groups.iter().filter(|it| it.section == section).map(|it| &*it.row))
    }

    pub(crate) fn all_contestants(&self, section: &str) -> Vec<&str> {
        distinct(self.groups.iter().filter(|it| it.section == section).map(|it| &*it.who))
    }

    pub(crate) fn get(&self, section: &str, row: &str, metric: &str, who: &str) -> Option<&Group> {
        self.groups.iter().find(|it| {
            it.section == section && it.row == row && it.metric == metric && it.who == who
        })
    }

    /// Whether anything of a row was measured.
    pub(crate) fn has(&self, section: &str, row: &str, who: &str) -> bool {
        self.groups.iter().any(|it| it.section == section && it.row == row && it.who == who)
    }

    pub(crate) fn fact(&self, name: &str) -> Option<&str> {
        self.facts.iter().find(|(known, _)| known == name).map(|(_, value)| &**value)
    }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_several_runs_come_together() {
        let mut figures = Figures::default();
        for (who, value) in [("QEMU microvm", 3.0), ("sparkler", 2.0), ("QEMU microvm", 1.0)] {
            figures.add(Line::Sample(Sample {
                section: "boot".into(),
                row: "a".into(),
                metric: "exit, ms".into(),
                who: who.into(),
                value,
            }));
        }
        figures.sort();
        assert_eq!(figures.contestants("boot", "exit, ms"), ["sparkler", "QEMU microvm"]);
        let group = figures.get("boot", "a", "exit, ms", "QEMU microvm").unwrap();
        assert_eq!(group.values, [1.0, 3.0]);
        assert_eq!(figures.sections().count(), 1);
    }
}
