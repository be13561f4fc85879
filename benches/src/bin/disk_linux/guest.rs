//! The jobs in the guest, and what it says of them.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use sparkler_benches::counters::{Counters, Source};

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

/// What was measured of one job in one run. All but the first two are for one request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) per_second: f64,
    pub(crate) megabytes_per_second: f64,
    pub(crate) exits: f64,
    pub(crate) interrupts: f64,
    pub(crate) cpu_microseconds: f64,
}

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

/// What the jobs of one machine gave, in order; fewer than all if the machine stood still.
pub(crate) type Measured = Vec<Figures>;

/// Runs the jobs in a machine, with its console on standard output. Ends a machine of which nothing is
/// heard for so long that it must have lost an interrupt.
pub(crate) fn run(mut monitor: Command, rows: &[&Row], patience: Duration) -> Result<Measured> {
    let source = Source::before_start()?;
    let name = monitor.get_program().display().to_string();
    let child = monitor.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("{name}: {error}"))?;
    let source = source.started(child.id());
    let measured = follow(&mut child, &source, rows, patience);
    // It may have ended by itself.
    child.kill()?;
    child.wait()?;
    measured.map_err(|error| format!("{name}: {error}").into())
}

fn follow(
    child: &mut Child,
    source: &Source,
    rows: &[&Row],
    patience: Duration,
) -> Result<Measured> {
    let console = child.stdout.take().ok_or("no console")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        BufReader::new(console).lines().map_while(io::Result::ok).try_for_each(|it| sender.send(it))
    });
    let (mut begin, mut end) = (Counters::default(), Counters::default());
    let mut rest = rows.iter();
    let (mut measured, mut said) = (Vec::new(), String::new());
    // Not until it ends: a machine that reboots by its firmware begins anew.
    while measured.len() < rows.len() {
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if measured.is_empty() => {
                return Err(format!("the guest stood still; it said:{said}").into());
            }
            Err(RecvTimeoutError::Timeout) => return Ok(measured),
        };
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("begin", _) => begin = source.read()?,
            ("end", _) => end = source.read()?,
            ("result", result) => {
                let row = rest.next().ok_or("more results than jobs")?;
                measured.push(figures(row, begin, end, result)?);
            }
            _ => said += &format!("\n  {line}"),
        }
    }
    match rest.next() {
        None => Ok(measured),
        Some(row) => Err(format!("no result of {:?}; the guest said:{said}", row.name).into()),
    }
}

/// `result` is the number of interrupts, then what fio says with `--minimal` (its terse version 3).
fn figures(row: &Row, begin: Counters, end: Counters, result: &str) -> Result<Figures> {
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
    Ok(Figures {
        per_second: number(first + 2)?,
        megabytes_per_second: number(first + 1)? * 1024.0 / 1e6,
        exits: each(exits.into()),
        interrupts: each(interrupts.parse()?),
        cpu_microseconds: each(end.cpu_microseconds - begin.cpu_microseconds),
    })
}
