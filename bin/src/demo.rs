//! `sparkler demo`: the built-in guest, booted in several ways.

use std::fmt::Write as _;

use sparkler::{
    MemorySize, Outcome,
    host::{HostKind, HostReport},
};

use crate::{
    built_in::{Done, Job},
    report::{Failure, print},
    waterfall::{milliseconds, waterfall},
};

/// One boot, and what is to come of it.
struct Act {
    title: &'static str,
    job: Job,
    expected: Outcome,
}

const fn act(
    title: &'static str,
    cmdline: &'static str,
    vcpus: u32,
    mib: u64,
    expected: Outcome,
) -> Act {
    Act { title, job: Job { cmdline, vcpus, memory: MemorySize::mib(mib) }, expected }
}

const ACTS: [Act; 6] = [
    act("say hello, and exit with code 42", "test=hello code=42", 1, 16, Outcome::Exited(42)),
    act("put four vCPUs to work", "test=vcpus expect_vcpus=4", 4, 64, Outcome::Exited(0)),
    act("use all of the memory", "test=memory", 1, 256, Outcome::Exited(0)),
    act("take interrupts", "test=interrupts", 1, 16, Outcome::Exited(0)),
    act("switch itself off", "quiet end=poweroff", 1, 16, Outcome::PowerOff),
    act("reset itself", "quiet end=reset", 1, 16, Outcome::Reset),
];

pub(crate) fn demo() -> Result<u8, Failure> {
    let host = HostReport::probe();
    host.kvm.map_err(Failure::refused)?;
    let size = sparkler_guest::ELF.len().div_ceil(1024);
    print(format!("The built-in guest ({size} KiB), on this host's KVM: {}.\n\n", host.kind))?;
    let mut first = None;
    let mut wrong = 0;
    for act in &ACTS {
        let done = act.job.run()?;
        print(act.describe(&done))?;
        wrong += u32::from(done.outcome != act.expected);
        first.get_or_insert(done.timeline);
    }
    if let Some(timeline) = first {
        print(format!("\nWhere the time of the first boot went:\n\n{}\n", waterfall(&timeline)))?;
    }
    if wrong > 0 {
        print(format!("{wrong} of {} boots went wrong.\n", ACTS.len()))?;
        return Ok(1);
    }
    let next = match host.kind {
        HostKind::Hardware => "`sparkler run /boot/vmlinuz-…` boots a stock kernel",
        _ => "`sparkler check` says what else this host can run",
    };
    print(format!("All is well. {next}.\n"))?;
    Ok(0)
}

impl Act {
    /// A line about the boot, and what the guest printed below it.
    fn describe(&self, done: &Done) -> String {
        let right = if done.outcome == self.expected { "ok   " } else { "WRONG" };
        let Job { vcpus, memory, .. } = self.job;
        let took = done.timeline.events().last().map_or(0.0, |e| milliseconds(e.at));
        let title = self.title;
        let s = if vcpus == 1 { "" } else { "s" };
        let machine = format!("{vcpus} vCPU{s}, {memory}");
        let mut text = format!("{right}  {title:<32}  {machine:<16}  {took:>6.1} ms\n");
        if done.outcome != self.expected {
            let _ = writeln!(text, "       expected {}, but {}", self.expected, done.outcome);
        }
        for line in done.printed.lines() {
            let _ = writeln!(text, "       | {}", line.trim_end().replace(char::is_control, ""));
        }
        text
    }
}
