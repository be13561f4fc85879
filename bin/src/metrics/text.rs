//! The counters, in the text format of Prometheus (version 0.0.4) and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde_json::{Value, json};
use sparkler::{DeviceStats, ExitStats, Stats};

pub(crate) fn to_json(stats: &Stats) -> Value {
    let exits = |exits: &ExitStats| object(exits.iter());
    let device = |device: &DeviceStats| {
        json!({
            "type": type_name(device.device_type),
            "interrupts": device.transport.interrupts,
            "resets": device.transport.resets,
            "failures": device.transport.failures,
            "counters": object(device.counters.iter().copied()),
        })
    };
    json!({
        "vcpus": stats.vcpus.iter().map(exits).collect::<Vec<_>>(),
        "devices": stats.devices.iter().map(device).collect::<Vec<_>>(),
        "console_output_dropped": stats.console_output_dropped,
        "shared_region_writes_dropped": stats.shared_region_writes_dropped,
        "memory_size": stats.memory_size,
        "memory_resident": stats.memory_resident,
    })
}

fn object(numbers: impl Iterator<Item = (&'static str, u64)>) -> Value {
    Value::Object(numbers.map(|(name, number)| (name.to_owned(), number.into())).collect())
}

pub(super) fn to_prometheus(stats: &Stats) -> String {
    let mut text = Text::default();
    text.family("sparkler_vcpu_exits_total", "counter", "Times that a vCPU left the guest.");
    for (vcpu, exits) in stats.vcpus.iter().enumerate() {
        for (reason, number) in exits.iter() {
            text.sample(&[("vcpu", &vcpu.to_string()), ("reason", reason)], number);
        }
    }
    for (name, of_devices) in families(&stats.devices) {
        let help = format!("Counter {name} of the virtio devices.");
        text.family(&format!("sparkler_device_{name}_total"), "counter", &help);
        for (index, number) in of_devices {
            let kind = stats.devices.get(index).map_or(0, |device| device.device_type);
            text.sample(&[("device", &index.to_string()), ("type", &type_name(kind))], number);
        }
    }
    let single = [
        ("memory_bytes", "gauge", "Memory that the guest has.", stats.memory_size),
        (
            "memory_resident_bytes",
            "gauge",
            "Memory that the host holds for the guest.",
            stats.memory_resident,
        ),
        (
            "console_dropped_bytes_total",
            "counter",
            "Console output that nobody took.",
            stats.console_output_dropped,
        ),
        (
            "shared_region_dropped_writes_total",
            "counter",
            "Writes of the guest to read-only shared regions.",
            stats.shared_region_writes_dropped,
        ),
    ];
    for (name, kind, help, value) in single {
        text.family(&format!("sparkler_{name}"), kind, help);
        text.sample(&[], value);
    }
    text.text
}

/// The counters of all devices by name, each with the device's index.
fn families(devices: &[DeviceStats]) -> BTreeMap<String, Vec<(usize, u64)>> {
    let mut families: BTreeMap<String, Vec<(usize, u64)>> = BTreeMap::new();
    for (index, device) in devices.iter().enumerate() {
        let transport = [
            ("interrupts", device.transport.interrupts),
            ("resets", device.transport.resets),
            ("failures", device.transport.failures),
        ];
        for (name, number) in transport.iter().chain(&device.counters) {
            families.entry(legal(name)).or_default().push((index, *number));
        }
    }
    families
}

/// As Prometheus allows in a name.
fn legal(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    name.chars().map(legal).collect()
}

/// Virtio 1.2, section 5.
fn type_name(device_type: u32) -> String {
    match device_type {
        1 => "net".to_owned(),
        2 => "block".to_owned(),
        4 => "rng".to_owned(),
        other => format!("virtio-{other}"),
    }
}

/// One family of samples after the other.
#[derive(Default)]
struct Text {
    text: String,
    family: String,
}

impl Text {
    /// Begins a family.
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a string does not fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        name.clone_into(&mut self.family);
    }

    /// Adds to the family. The values of labels need no escapes.
    fn sample(&mut self, labels: &[(&str, &str)], value: u64) {
        let Self { text, family } = self;
        let labels: Vec<_> = labels.iter().map(|(key, of)| format!("{key}=\"{of}\"")).collect();
        let _ = match labels.is_empty() {
            true => writeln!(text, "{family} {value}"),
            false => writeln!(text, "{family}{{{}}} {value}", labels.join(",")),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_counters_are_legal_ones() {
        assert_eq!(legal("read_bytes"), "read_bytes");
        assert_eq!(legal("Größe.2{a=\"b\"}\n"), "gr__e_2_a__b___");
    }

    #[test]
    fn a_machine_without_anything_has_its_memory() {
        let text = to_prometheus(&Stats::default());
        let samples: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = [
            "sparkler_memory_bytes 0",
            "sparkler_memory_resident_bytes 0",
            "sparkler_console_dropped_bytes_total 0",
            "sparkler_shared_region_dropped_writes_total 0",
        ];
        assert_eq!(samples, expected);
        assert_eq!(to_json(&Stats::default())["memory_size"], 0);
    }
}
