//! The jobs in the guest, and what it says of them.

use std::fs;
use std::process::{Child, Command};
use std::thread;
use std::time::Duration;

use sparkler_benches::counters::Source;
use sparkler_benches::jobs::Jobs;

use crate::{HOST, Result, TAP, set_up_tap};

/// A clock tick of `/proc/stat` in microseconds: `USER_HZ` is 100 on every x86 Linux.
const TICK: f64 = 10_000.0;
/// How many echoes a row is.
const ECHOES: f64 = 2000.0;

/// One job.
pub(crate) struct Row {
    name: &'static str,
    kind: Kind,
    /// What iperf3 is told beyond the usual.
    words: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stream,
    /// The datagrams make frames of 64 bytes, the check sequence included.
    Datagrams,
    Echoes,
}

pub(crate) const ROWS: [Row; 7] = [
    Row { name: "TCP out", kind: Kind::Stream, words: "" },
    Row { name: "TCP in", kind: Kind::Stream, words: "--reverse" },
    Row { name: "TCP out, 4", kind: Kind::Stream, words: "--parallel 4" },
    Row { name: "TCP in, 4", kind: Kind::Stream, words: "--parallel 4 --reverse" },
    Row { name: "64 bytes out", kind: Kind::Datagrams, words: "" },
    Row { name: "64 bytes in", kind: Kind::Datagrams, words: "--reverse" },
    Row { name: "echo", kind: Kind::Echoes, words: "" },
];

impl Row {
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self.kind {
            Kind::Stream => "Mbit/s",
            Kind::Datagrams => "packets/s received",
            Kind::Echoes => "µs",
        }
    }

    pub(crate) fn cpu_unit(&self) -> &'static str {
        if self.kind == Kind::Stream { "s/GB" } else { "µs" }
    }

    pub(crate) fn is_time(&self) -> bool {
        self.kind == Kind::Echoes
    }
}

/// What was measured of one job in one run.
pub(crate) type Figures = [(&'static str, f64); 4];

/// The script that does these jobs, one after another. The counters on this side are read at "begin" and
/// "end"; nothing is printed between them.
pub(crate) fn script(rows: &[&Row], seconds: u32) -> String {
    let mut script = format!(
        r#"
set -- $(sed -n 's/.*\bip=\([^ ]*\).*/\1/p' /proc/cmdline | tr : ' ')
ip link set eth0 up
ip addr add $1/$3 dev eth0
# The other side sets its own address when it sees the tap.
until ping -q -c 1 -W 1 {HOST} >/dev/null; do :; done
perf() {{
    # The server may not be done yet with the run before, and says so.
    tries=0
    until iperf3 --client {HOST} --format m --time {seconds} --omit 1 "$@" >/run/result 2>&1; do
        tries=$((tries + 1))
        [ $tries -lt 50 ] && grep -q 'server is busy' /run/result || {{ cat /run/result; exit 1; }}
        sleep 0.2
    done
}}
device=$(basename $(readlink /sys/class/net/eth0/device))
interrupts() {{
    awk -v device=$device '$NF == device {{ print $2 }}' /proc/interrupts
}}
# What is measured, and how the result is found in what it said.
job() {{
    before=$(interrupts)
    echo begin
    "$@"
    echo end
    echo "result $row $(($(interrupts) - before)) $(result)"
}}
streams() {{
    result() {{
        grep receiver /run/result | tail -n 1 | sed 's/.* \([0-9.]*\) Mbits.*/\1/'
    }}
    job perf "$@"
}}
datagrams() {{
    result() {{
        counts=$(grep receiver /run/result | tail -n 1 | sed 's/.* \([0-9]*\)\/\([0-9]*\) .*/\1 \2/')
        echo $counts | awk '{{ print ($2 - $1) / {seconds} }}'
    }}
    job perf --udp --length 18 --bitrate 0 "$@"
}}
echo_requests() {{
    ping -f -q -c {ECHOES} {HOST} >/run/result
}}
echoes() {{
    result() {{
        awk -F/ '/^rtt/ {{ print $5 * 1000 }}' /run/result
    }}
    job echo_requests
}}
"#,
    );
    for (row, Row { kind, words, .. }) in rows.iter().enumerate() {
        let job = match kind {
            Kind::Stream => "streams",
            Kind::Datagrams => "datagrams",
            Kind::Echoes => "echoes",
        };
        script += &format!("row={row}\n{job} {words}\n");
    }
    script
}

/// Runs the jobs in a machine: what each gave, in order; not all if the machine stood still.
pub(crate) fn run(
    monitor: Command,
    rows: &[&Row],
    patience: Duration,
    seconds: u32,
) -> Result<Vec<Figures>> {
    let names: Vec<_> = rows.iter().map(|row| row.name).collect();
    let jobs = Jobs { names: &names, patience };
    jobs.run(monitor, tap_of, Counts::read, |job, counts, result| {
        let [number, interrupts, result] = numbers(result)?;
        let row = rows.get(job).ok_or("more results than jobs")?;
        if number != job as f64 {
            return Err(format!("the result of job {number}, not of {:?}", row.name).into());
        }
        Ok(figures(row, result, interrupts, counts, seconds))
    })
}

/// Waits until the monitor has made its tap, and sets that up.
fn tap_of(monitor: &mut Child) -> Result<()> {
    // `/sys` shows the networks of whoever mounted it.
    let is_there = || fs::read_to_string("/proc/self/net/dev").is_ok_and(|all| all.contains(TAP));
    while !is_there() {
        if let Some(status) = monitor.try_wait()? {
            return Err(format!("ended without a tap ({status})").into());
        }
        thread::sleep(Duration::from_millis(10)); // Nothing tells when it is there but netlink.
    }
    set_up_tap()
}

fn numbers(words: &str) -> Result<[f64; 3]> {
    let numbers = words.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>();
    let numbers: Option<Vec<f64>> = numbers.ok();
    numbers
        .and_then(|all| all.try_into().ok())
        .ok_or_else(|| format!("the result {words:?}").into())
}

/// What is counted on this side.
#[derive(Clone, Copy, Debug)]
struct Counts {
    exits: u64,
    busy: f64,
}

impl Counts {
    fn read(source: &Source) -> Result<Self> {
        Ok(Self { exits: source.read()?.exits, busy: busy_microseconds()? })
    }
}

fn figures(
    row: &Row,
    result: f64,
    interrupts: f64,
    [begin, end]: [Counts; 2],
    seconds: u32,
) -> Figures {
    // With the second that iperf3 leaves out of its figures.
    let seconds = f64::from(seconds) + 1.0;
    let (amount, cpu) = match row.kind {
        // Megabytes; seconds for a thousand of them.
        Kind::Stream => (result / 8.0 * seconds, 1e-3),
        Kind::Datagrams => (result * seconds, 1.0),
        Kind::Echoes => (ECHOES, 1.0),
    };
    [
        ("result", result),
        ("exits", end.exits.saturating_sub(begin.exits) as f64 / amount),
        ("interrupts", interrupts / amount),
        ("cpu", (end.busy - begin.busy) * cpu / amount),
    ]
}

/// For how long the processors of this host have worked, since it booted.
fn busy_microseconds() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().ok_or("/proc/stat is empty")?;
    let fields = first.split_whitespace().skip(1).map(str::parse);
    let fields = fields.collect::<std::result::Result<Vec<f64>, _>>()?;
    // user, nice, system, idle, iowait, irq, softirq; a guest's time is in user.
    let [user, nice, system, _, _, irq, softirq, ..] = fields[..] else {
        return Err("/proc/stat is too short".into());
    };
    Ok((user + nice + system + irq + softirq) * TICK)
}
