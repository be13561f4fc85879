//! `sparkler check`: is this host fit, and if not, what to do.

use serde_json::{Value, json};
use sparkler::{
    MemorySize, Outcome,
    host::{HostKind, HostReport, KvmReport},
};

use crate::{
    args::CheckArgs,
    built_in::{Done, Job},
    cpuid,
    report::{Failure, chain, print},
};

/// Exit code: this host is not fit.
pub(crate) const UNFIT: u8 = 1;

/// The answer to one question about the host.
struct Finding {
    question: &'static str,
    fit: bool,
    /// What was found and, where the answer is no, what to do about it.
    answer: String,
}

pub(crate) fn check(args: &CheckArgs) -> Result<u8, Failure> {
    if args.cpuid {
        return cpuid::show(args.cpu_template, args.json);
    }
    let host = HostReport::probe();
    let mut findings = look(&host);
    let speed =
        if findings.iter().all(|f| f.fit) { Some(boot(&mut findings)) } else { None }.flatten();
    if host.kvm.is_ok() {
        findings.push(stock_linux(host.kind));
    }
    let fit = findings.iter().all(|f| f.fit);
    if args.json {
        print(format!("{}\n", to_json(&host, &findings, speed, fit)))?;
    } else {
        print(to_text(&findings, host.kvm.is_ok()))?;
    }
    Ok(if fit { 0 } else { UNFIT })
}

/// What can be asked without a machine.
fn look(host: &HostReport) -> Vec<Finding> {
    let kvm = match &host.kvm {
        Ok(kvm) => kvm,
        Err(error) => return vec![no("/dev/kvm", chain(error))],
    };
    let missing = kvm.missing();
    let capabilities = if missing.is_empty() {
        yes("capabilities", with_optional(kvm))
    } else {
        no("capabilities", format!("this KVM lacks {}; boot a newer kernel", missing.join(", ")))
    };
    vec![
        yes("/dev/kvm", format!("usable, API version {}", kvm.api_version)),
        capabilities,
        yes("vCPUs", format!("up to {} a machine", kvm.max_vcpus)),
    ]
}

fn with_optional(kvm: &KvmReport) -> String {
    let absent = kvm.capabilities.iter().filter(|cap| !cap.needed && !cap.present);
    let absent: Vec<_> = absent.map(|cap| cap.name).collect();
    let mut text = "all that are needed".to_owned();
    if !absent.is_empty() {
        text += &format!(", but not {}", absent.join(", "));
    }
    text
}

/// Runs the built-in guest, which measures its own speed.
fn boot(findings: &mut Vec<Finding>) -> Option<Speed> {
    const QUESTION: &str = "built-in guest";
    let job = Job { cmdline: "test=speed", vcpus: 1, memory: MemorySize::mib(16) };
    let done = match job.run() {
        Ok(done) if done.outcome == Outcome::Exited(0) => done,
        Ok(Done { outcome, .. }) => {
            findings.push(no(QUESTION, format!("does not run as it should: {outcome}")));
            return None;
        }
        Err(failure) => {
            findings.push(no(QUESTION, chain(&failure)));
            return None;
        }
    };
    findings.push(yes(QUESTION, "runs".into()));
    let speed = Speed::printed_in(&done.printed);
    let per_second = |speed: Option<u64>| match speed {
        Some(speed) => format!("{} million instructions a second", speed.div_ceil(1_000_000)),
        None => "unknown: KVM does not tell the frequency of the time-stamp counter".into(),
    };
    findings.push(yes("kernel speed", per_second(speed.map(|s| s.kernel))));
    findings.push(yes("user speed", per_second(speed.map(|s| s.user))));
    speed
}

/// How fast the guest is, in instructions a second.
#[derive(Clone, Copy)]
struct Speed {
    kernel: u64,
    user: u64,
}

impl Speed {
    fn printed_in(text: &str) -> Option<Self> {
        let value = |key: &str| {
            let mut values = text.split_whitespace().filter_map(|word| word.strip_prefix(key));
            values.next()?.strip_prefix('=')?.parse().ok().filter(|&speed: &u64| speed > 0)
        };
        let kernel = value("cpl0_instructions_per_second")?;
        Some(Self { kernel, user: value("cpl3_instructions_per_second")? })
    }
}

fn stock_linux(kind: HostKind) -> Finding {
    const QUESTION: &str = "stock Linux";
    match kind {
        HostKind::Hardware => yes(QUESTION, "boots: KVM has hardware virtualization".into()),
        HostKind::Pvm => no(
            QUESTION,
            "does not boot: this KVM is PVM, which has no hardware virtualization and emulates \
             guest kernels, not every instruction of them. Only guests made for it run, such as the \
             built-in one. This is the host's limit: use a host with hardware virtualization"
                .into(),
        ),
        _ => no(QUESTION, "does not boot without KVM".into()),
    }
}

fn yes(question: &'static str, answer: String) -> Finding {
    Finding { question, fit: true, answer }
}

fn no(question: &'static str, answer: String) -> Finding {
    Finding { question, fit: false, answer }
}

fn to_text(findings: &[Finding], has_kvm: bool) -> String {
    let mut text = String::new();
    for finding in findings {
        let Finding { question, answer, .. } = finding;
        let mark = if finding.fit { "ok" } else { "NO" };
        let answer = wrap(answer).join(&format!("\n{:INDENT$}", ""));
        text += &format!("{mark}  {question:<14}  {answer}\n");
    }
    let verdict = match findings.iter().all(|f| f.fit) {
        true => "fit",
        false if has_kvm => "not fit for stock Linux kernels",
        false => "not fit: there is no usable KVM",
    };
    text + &format!("\nThis host is {verdict}.\n")
}

/// Columns before an answer.
const INDENT: usize = 20;

/// Breaks an answer into lines for a terminal of 80 columns.
fn wrap(answer: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in answer.split_whitespace() {
        match lines.last_mut() {
            Some(line) if INDENT + line.len() + 1 + word.len() <= 80 => {
                *line += &format!(" {word}")
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

fn to_json(host: &HostReport, findings: &[Finding], speed: Option<Speed>, fit: bool) -> Value {
    let kind = match host.kind {
        HostKind::Hardware => "hardware",
        HostKind::Pvm => "pvm",
        _ => "none",
    };
    let finding = |f: &Finding| json!({ "question": f.question, "fit": f.fit, "answer": f.answer });
    let capability = |cap: &sparkler::host::Capability| json!({ "name": cap.name, "needed": cap.needed, "present": cap.present });
    let capabilities = host.kvm.iter().flat_map(|kvm| &kvm.capabilities);
    json!({
        "fit": fit,
        "kind": kind,
        "findings": findings.iter().map(finding).collect::<Vec<_>>(),
        "capabilities": capabilities.map(capability).collect::<Vec<_>>(),
        "instructions_per_second": speed.map(|s| json!({ "kernel": s.kernel, "user": s.user })),
    })
}
