//! The jobs in the guest, and what it says of them.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use sparkler_benches::counters::Source;

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
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figures {
    pub(crate) result: f64,
    pub(crate) exits: f64,
    pub(crate) interrupts: f64,
    pub(crate) cpu: f64,
}

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

/// What the jobs of one machine gave, in order; fewer than all if the machine stood still.
pub(crate) type Measured = Vec<Figures>;

/// Runs the jobs in a machine, with its console on standard output. Ends a machine of which nothing is
/// heard for so long that it must have lost an interrupt.
pub(crate) fn run(
    mut monitor: Command,
    rows: &[&Row],
    patience: Duration,
    seconds: u32,
) -> Result<Measured> {
    let source = Source::before_start()?;
    let name = monitor.get_program().display().to_string();
    let child = monitor.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
    let mut child = child.map_err(|error| format!("{name}: {error}"))?;
    let source = source.started(child.id());
    let measured = tap_of(&mut child);
    let measured = measured.and_then(|()| follow(&mut child, &source, rows, patience, seconds));
    // It may have ended by itself.
    child.kill()?;
    child.wait()?;
    measured.map_err(|error| format!("{name}: {error}").into())
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

fn follow(
    child: &mut Child,
    source: &Source,
    rows: &[&Row],
    patience: Duration,
    seconds: u32,
) -> Result<Measured> {
    let console = child.stdout.take().ok_or("no console")?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        BufReader::new(console).lines().map_while(io::Result::ok).try_for_each(|it| sender.send(it))
    });
    let (mut begin, mut end) = (Counts::default(), Counts::default());
    let count = rows.len();
    let mut rows = rows.iter();
    let (mut measured, mut said) = (Vec::new(), String::new());
    loop {
        let line = match lines.recv_timeout(patience) {
            Ok(line) => line,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) if measured.is_empty() => {
                return Err(format!("the guest stood still; it said:{said}").into());
            }
            Err(RecvTimeoutError::Timeout) => return Ok(measured),
        };
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("begin", _) => begin = Counts::read(source)?,
            ("end", _) => end = Counts::read(source)?,
            ("result", result) => {
                let row = rows.next().ok_or("more results than jobs")?;
                let [number, interrupts, result] = numbers(result)?;
                if number != measured.len() as f64 {
                    return Err(format!("the result of job {number}, not of {:?}", row.name).into());
                }
                measured.push(figures(row, result, interrupts, end.since(begin), seconds));
                // What the machine does afterwards, a monitor's way of a reboot, is of no interest.
                if measured.len() == count {
                    return Ok(measured);
                }
            }
            _ => said += &format!("\n  {line}"),
        }
    }
    match rows.next() {
        None => Ok(measured),
        Some(row) => Err(format!("no result of {:?}; the guest said:{said}", row.name).into()),
    }
}

fn numbers(words: &str) -> Result<[f64; 3]> {
    let numbers = words.split_whitespace().map(str::parse).collect::<std::result::Result<_, _>>();
    let numbers: Option<Vec<f64>> = numbers.ok();
    numbers
        .and_then(|all| all.try_into().ok())
        .ok_or_else(|| format!("the result {words:?}").into())
}

/// What is counted on this side.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    exits: u64,
    busy: f64,
}

impl Counts {
    fn read(source: &Source) -> Result<Self> {
        Ok(Self { exits: source.read()?.exits, busy: busy_microseconds()? })
    }

    fn since(self, earlier: Self) -> Self {
        Self { exits: self.exits.saturating_sub(earlier.exits), busy: self.busy - earlier.busy }
    }
}

fn figures(row: &Row, result: f64, interrupts: f64, counts: Counts, seconds: u32) -> Figures {
    // With the second that iperf3 leaves out of its figures.
    let seconds = f64::from(seconds) + 1.0;
    let (amount, cpu) = match row.kind {
        // Megabytes; seconds for a thousand of them.
        Kind::Stream => (result / 8.0 * seconds, 1e-3),
        Kind::Datagrams => (result * seconds, 1.0),
        Kind::Echoes => (ECHOES, 1.0),
    };
    Figures {
        result,
        exits: counts.exits as f64 / amount,
        interrupts: interrupts / amount,
        cpu: counts.busy * cpu / amount,
    }
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
