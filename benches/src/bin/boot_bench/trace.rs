//! What KVM itself tells of a machine, whichever monitor runs it: the trace events of the host's kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::Result;

/// Where the kernel has its trace events: at the usual place, or below debugfs.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The boot-mark port, as a filter of trace events has it.
const MARK_PORT: &str = "port == 0xf8";

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Watch {
    /// The first entry into a guest, and no more.
    FirstEntry,
    /// Each write to the boot-mark port.
    Marks,
    /// Each exit until the first write to the boot-mark port.
    ExitsToMark,
}

/// A trace of its own, beside any other that the kernel keeps.
#[derive(Debug)]
pub(crate) struct Trace(PathBuf);

impl Trace {
    /// Begins to watch. Fails without the rights, and where the kernel has no such events.
    pub(crate) fn begin(watch: Watch) -> Result<Self> {
        let place = PLACES.map(Path::new).into_iter().find(|place| place.join("events").is_dir());
        let place = place.ok_or("the kernel's trace events are not readable here")?;
        // Two may watch at once.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sparkler-bench-{}-{number}", std::process::id());
        let trace = Self(place.join("instances").join(name));
        fs::create_dir(&trace.0)?;
        trace.set_up(watch)?;
        Ok(trace)
    }

    fn set_up(&self, watch: Watch) -> Result<()> {
        self.write("trace_clock", "mono")?;
        match watch {
            Watch::FirstEntry => {
                self.write("events/kvm/kvm_entry/trigger", "traceoff:1")?;
                self.write("events/kvm/kvm_entry/enable", "1")
            }
            Watch::Marks => {
                self.write("events/kvm/kvm_pio/filter", MARK_PORT)?;
                self.write("events/kvm/kvm_pio/enable", "1")
            }
            Watch::ExitsToMark => {
                self.write("buffer_size_kb", "16384")?;
                self.write("events/kvm/kvm_pio/trigger", &format!("traceoff:1 if {MARK_PORT}"))?;
                self.write("events/kvm/kvm_exit/enable", "1")
            }
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<()> {
        let path = self.0.join(file);
        fs::write(&path, text).map_err(|error| format!("{}: {error}", path.display()).into())
    }

    /// When the first event was seen, on the monotonic clock; nothing if there was none yet.
    pub(crate) fn first(&self) -> Result<Option<Duration>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        Ok(text.lines().find_map(parse).map(|event| event.at))
    }

    /// How many exits there were for each reason; port I/O and memory of devices by what was accessed.
    pub(crate) fn exits(&self) -> Result<BTreeMap<String, u32>> {
        let text = fs::read_to_string(self.0.join("trace"))?;
        let mut exits = BTreeMap::new();
        for event in text.lines().filter_map(parse).filter(|event| event.name == "kvm_exit") {
            *exits.entry(reason(event.rest)).or_default() += 1;
        }
        Ok(exits)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        // What remains is a folder in memory that nobody writes to.
        let _ = fs::remove_dir(&self.0);
    }
}

struct Event<'a> {
    at: Duration,
    name: &'a str,
    rest: &'a str,
}

/// `vcpu0-123 [000] d.... 12.345678: kvm_pio: pio_write at 0xf8 size 1 count 1 val 0x1`
fn parse(line: &str) -> Option<Event<'_>> {
    let (head, rest) = line.split_once(": kvm_")?;
    let time = head.rsplit(' ').next()?;
    let name_end = rest.find(':')?;
    // With `kvm_` back in front.
    let start = line.len() - rest.len() - "kvm_".len();
    let name = line.get(start..start + "kvm_".len() + name_end)?;
    let at = Duration::try_from_secs_f64(time.parse().ok()?).ok()?;
    Some(Event { at, name, rest: rest.get(name_end + 1..)?.trim() })
}

/// `[vcpu 0] reason io rip 0x… info1 0x… info2 0x… …`, with or without the vCPU.
fn reason(event: &str) -> String {
    let mut words = event.split_whitespace().skip_while(|word| *word != "reason").skip(1);
    let reason = words.next().unwrap_or("unknown").trim_start_matches("EXIT_").to_lowercase();
    let mut info = |name| {
        let value = words.by_ref().skip_while(|word| *word != name).nth(1)?;
        u64::from_str_radix(value.trim_start_matches("0x"), 16).ok()
    };
    match reason.as_str() {
        // On AMD's processors, and on Intel's.
        "io" | "io_instruction" => match info("info1") {
            Some(value) => format!("port {:#x}", value >> 16 & 0xffff),
            None => reason,
        },
        _ => reason,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIO: &str = "           vcpu0-96      [001] d..1.   111.222333: kvm_pio: pio_write at 0xf8 size 1 count 1 val 0x64 ";
    const EXIT: &str = "  vcpu0-96 [001] d..1. 1.5: kvm_exit: vcpu 0 reason io rip 0xffffffff81 info1 0x0000000003f90220 info2 0x0 intr_info 0x0 error_code 0x0";

    #[test]
    fn an_event_has_a_time_a_name_and_the_rest() {
        let event = parse(PIO).unwrap();
        assert_eq!(event.at, Duration::from_micros(111_222_333));
        assert_eq!((event.name, event.rest.starts_with("pio_write at")), ("kvm_pio", true));
        assert!(parse("# tracer: nop").is_none());
    }

    #[test]
    fn an_access_to_a_port_says_which() {
        let event = parse(EXIT).unwrap();
        assert_eq!((event.name, reason(event.rest).as_str()), ("kvm_exit", "port 0x3f9"));
        assert_eq!(reason("vcpu 0 reason EXIT_HLT rip 0x1 info1 0x0"), "hlt");
    }
}
