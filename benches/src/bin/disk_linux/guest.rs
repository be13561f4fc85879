//! The jobs in the guest, and what it says of them.

use std::process::Command;
use std::time::Duration;

use sparkler_benches::counters::{Counters, Source};
use sparkler_benches::jobs::Jobs;

use crate::Result;

/// One job of fio.
pub(crate) struct Row {
    name: &'static str,
    pattern: &'static str,
    block_kib: u32,
    depth: u32,
}

pub(crate) const ROWS: [Row; 6] = [
    Row { name: "4K random read, 1", pattern: "randread", block_kib: 4, depth: 1 },
    Row { name: "4K random read, 32", pattern: "randread", block_kib: 4, depth: 32 },
    Row { name: "4K random write, 1", pattern: "randwrite", block_kib: 4, depth: 1 },
    Row { name: "4K random write, 32", pattern: "randwrite", block_kib: 4, depth: 32 },
    Row { name: "128K read, 4", pattern: "read", block_kib: 128, depth: 4 },
    Row { name: "128K write, 4", pattern: "write", block_kib: 128, depth: 4 },
];

impl Row {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn unit(&self) -> &'static str {
        if self.block_kib == 4 { "IOPS" } else { "MB/s" }
    }
}

/// What was measured of one job in one run: IOPS or MB/s, and the others for one request.
pub(crate) type Figures = [(&'static str, f64); 4];

/// The script that does the jobs of `rows`, one after another, on `/dev/vdb`. The counters on this side
/// are read at "begin" and "end"; nothing is printed between them.
pub(crate) fn script(rows: &[&Row], seconds: u32) -> String {
    let mut script = String::from(
        r#"
device=$(basename $(readlink /sys/block/vdb/device))
interrupts() {
    awk -v device=$device '$NF == device { print $2 }' /proc/interrupts
}
job() {
    # Once before it counts, so that fio itself is in memory.
    [ -e /run/warm ] || fio --runtime=1 $* >/run/warm
    before=$(interrupts)
    echo begin
    fio $* >/run/result
    echo end
    echo "result $(($(interrupts) - before)) $(cat /run/result)"
}
"#,
    );
    for Row { pattern, block_kib, depth, .. } in rows {
        script += &format!(
            "job --name=job --filename=/dev/vdb --direct=1 --ioengine=libaio --thread --minimal \
             --norandommap --gtod_reduce=1 --time_based --runtime={seconds} --rw={pattern} \
             --bs={block_kib}k --iodepth={depth}\n"
        );
    }
    script
}

/// Runs the jobs in a machine: what each gave, in order; not all if the machine stood still.
pub(crate) fn run(monitor: Command, rows: &[&Row], patience: Duration) -> Result<Vec<Figures>> {
    let names: Vec<_> = rows.iter().map(|row| row.name).collect();
    let jobs = Jobs { names: &names, patience };
    let figures = |job: usize, counters, result: &str| {
        figures(rows.get(job).ok_or("more results than jobs")?, counters, result)
    };
    jobs.run(monitor, |_| Ok(()), Source::read, figures)
}

/// `result` is the number of interrupts, then what fio says with `--minimal` (its terse version 3).
fn figures(row: &Row, [begin, end]: [Counters; 2], result: &str) -> Result<Figures> {
    let (interrupts, terse) = result.split_once(' ').ok_or("a result without fio's")?;
    let fields: Vec<&str> = terse.split(';').collect();
    let number = |index: usize| -> Result<f64> {
        let field = fields.get(index).ok_or_else(|| format!("fio's result is {terse:?}"))?;
        Ok(field.parse()?)
    };
    // KiB moved, KiB/s, IOPS: of reads from field 5 on, of writes from field 46 on.
    let first = if row.pattern.ends_with("read") { 5 } else { 46 };
    let requests = number(first)? / f64::from(row.block_kib);
    let each = |total: f64| total / requests.max(1.0);
    let exits = u32::try_from(end.exits - begin.exits)?;
    let result = match row.unit() {
        "IOPS" => number(first + 2)?,
        _ => number(first + 1)? * 1024.0 / 1e6,
    };
    Ok([
        ("result", result),
        ("exits", each(exits.into())),
        ("interrupts", each(interrupts.parse()?)),
        ("cpu", each(end.cpu_microseconds - begin.cpu_microseconds)),
    ])
}
