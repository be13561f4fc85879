//! CPUID that is the same on hosts of several generations.

use std::fmt;

use thiserror::Error;

use super::CpuidEntry;
use super::baseline::{self, Baseline, Register};

/// Which processor a guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum CpuTemplate {
    /// The host's, as far as KVM can show it.
    #[default]
    Host,
    /// The one of [`IntelBaseline`](Self::IntelBaseline) and [`AmdBaseline`](Self::AmdBaseline) that is for
    /// the host's vendor.
    Baseline,
    /// What Intel's server processors from Skylake on have in common, but for AVX-512.
    IntelBaseline,
    /// What AMD's processors from Zen 2 on have in common.
    AmdBaseline,
}

impl fmt::Display for CpuTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::Baseline => "baseline",
            Self::IntelBaseline => "Intel baseline",
            Self::AmdBaseline => "AMD baseline",
        })
    }
}

/// The template is not for this host's processor.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "the CPU template {template} is not possible on a processor of {vendor:?}: take the template host"
)]
#[non_exhaustive]
pub struct CpuTemplateError {
    /// The template.
    pub template: CpuTemplate,
    /// What the processor calls its vendor.
    pub vendor: String,
}

/// Features that a template has and the host has not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Missing {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf.
    pub subleaf: u32,
    /// The name of the register.
    pub register: &'static str,
    /// The missing bits of it.
    pub bits: u32,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { leaf, subleaf, register, bits } = self;
        write!(f, "leaf {leaf:#x}.{subleaf} {register} bits {bits:#010x}")
    }
}

impl CpuTemplate {
    /// What is left of `host` under the template, and what the host lacks.
    pub(super) fn apply(
        self,
        host: Vec<CpuidEntry>,
    ) -> Result<(Vec<CpuidEntry>, Vec<Missing>), CpuTemplateError> {
        let vendor = vendor(&host);
        let baseline = match (self, vendor.as_str()) {
            (Self::Host, _) => return Ok((host, Vec::new())),
            (Self::Baseline | Self::IntelBaseline, "GenuineIntel") => &baseline::INTEL,
            (Self::Baseline | Self::AmdBaseline, "AuthenticAMD") => &baseline::AMD,
            _ => return Err(CpuTemplateError { template: self, vendor }),
        };
        Ok(baseline.apply(&host))
    }
}

fn vendor(entries: &[CpuidEntry]) -> String {
    let leaf = entries.iter().find(|entry| entry.is(0, 0));
    let bytes = leaf.map(|leaf| [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat());
    String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
}

impl Baseline {
    fn apply(&self, host: &[CpuidEntry]) -> (Vec<CpuidEntry>, Vec<Missing>) {
        let mut missing = Vec::new();
        let entries = self.leaves.iter().map(|&(leaf, subleaf, registers)| {
            let index = subleaf.unwrap_or(0);
            let host = host.iter().find(|entry| entry.is(leaf, index));
            let host = host.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx]);
            let mut values = [0; 4];
            let names = ["EAX", "EBX", "ECX", "EDX"];
            let sources = registers.into_iter().zip(host).zip(names);
            for (value, ((register, host), name)) in values.iter_mut().zip(sources) {
                *value = match register {
                    Register::Is(value) => value,
                    Register::Host => host,
                    Register::Of(features) => {
                        let bits = features & !host;
                        if bits != 0 {
                            missing.push(Missing { leaf, subleaf: index, register: name, bits });
                        }
                        features & host
                    }
                    Register::AddressBits(template) => address_bits(template, host),
                };
            }
            let [eax, ebx, ecx, edx] = values;
            CpuidEntry { leaf, subleaf, eax, ebx, ecx, edx }
        });
        (entries.collect(), missing)
    }
}

/// The widths of addresses, physical and linear: never more than the host has.
fn address_bits(template: u32, host: u32) -> u32 {
    let width = |shift: u32| ((template >> shift) & 0xff).min((host >> shift) & 0xff) << shift;
    width(0) | width(8)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: [u32; 4]) -> CpuidEntry {
        CpuidEntry { leaf, subleaf, eax, ebx, ecx, edx }
    }

    /// A host that has every feature, and the leaves of the template and many more.
    fn host(vendor: &[u8; 12], address_bits: u32) -> Vec<CpuidEntry> {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        let mut entries: Vec<_> = (1..0x24)
            .chain(0x4000_0000..0x4000_0012)
            .chain(0x8000_0000..0x8000_0028)
            .filter(|leaf| ![4, 7, 0xd, 0x8000_0008, 0x8000_001d].contains(leaf))
            .map(|leaf| entry(leaf, None, [u32::MAX; 4]))
            .collect();
        let indexed = [4, 7, 0xd, 0x8000_001d].into_iter();
        let indexed = indexed.flat_map(|leaf| (0..5).map(move |subleaf| (leaf, subleaf)));
        entries.extend(indexed.map(|(leaf, subleaf)| entry(leaf, Some(subleaf), [u32::MAX; 4])));
        entries.push(entry(0x8000_0008, None, [address_bits, u32::MAX, u32::MAX, u32::MAX]));
        entries.push(entry(0, None, [0x23, word(0), word(8), word(4)]));
        entries
    }

    fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> CpuidEntry {
        *entries.iter().find(|entry| entry.is(leaf, subleaf)).unwrap()
    }

    #[test]
    fn newer_hosts_look_the_same() {
        for (vendor, newer) in [(b"GenuineIntel", 0x0039_3934), (b"AuthenticAMD", 0x3939_3934)] {
            let (entries, missing) = CpuTemplate::Baseline.apply(host(vendor, newer)).unwrap();
            assert_eq!(missing, []);
            // The next generation: more leaves, another model, wider addresses.
            let mut next = host(vendor, 0x3939_3939);
            next.push(entry(0x24, None, [1; 4]));
            next.iter_mut()
                .filter(|entry| entry.is(1, 0))
                .for_each(|entry| entry.eax = 0x000c_06f2);
            assert_eq!(CpuTemplate::Baseline.apply(next).unwrap().0, entries);
            // No AVX-512 (7.0 EBX 16), no protection keys (ECX 3), no AMX (EDX 24), and AVX2 (EBX 5).
            let features = find(&entries, 7, 0);
            assert_eq!(features.ebx >> 16 & 1, 0);
            assert_eq!((features.ecx >> 3 & 1, features.edx >> 24 & 1), (0, 0));
            assert_eq!(features.ebx >> 5 & 1, 1);
            // The state of AVX and nothing more.
            assert_eq!(find(&entries, 0xd, 0).eax, 7);
            assert_eq!(find(&entries, 0, 0).eax, 0xd);
        }
    }

    #[test]
    fn what_an_older_host_lacks_is_named() {
        let mut old = host(b"AuthenticAMD", 0x302b);
        old.iter_mut().filter(|entry| entry.is(7, 0)).for_each(|entry| entry.ebx = !(1 << 5));
        let (entries, missing) = CpuTemplate::AmdBaseline.apply(old).unwrap();
        assert_eq!(missing.len(), 1);
        assert_eq!(missing[0].to_string(), "leaf 0x7.0 EBX bits 0x00000020");
        assert_eq!(find(&entries, 7, 0).ebx >> 5 & 1, 0);
        assert_eq!(find(&entries, 0x8000_0008, 0).eax, 0x302b);
    }

    #[test]
    fn another_vendor_is_refused() {
        let apply = |template: CpuTemplate, vendor| template.apply(host(vendor, 0x3030));
        let error = apply(CpuTemplate::IntelBaseline, b"AuthenticAMD").unwrap_err();
        assert!(error.to_string().contains("Intel baseline"), "{error}");
        assert!(error.to_string().contains("AuthenticAMD"), "{error}");
        assert!(apply(CpuTemplate::AmdBaseline, b"GenuineIntel").is_err());
        assert!(apply(CpuTemplate::Baseline, b"CentaurHauls").is_err());
        let all = host(b"CentaurHauls", 0x3030);
        assert_eq!(CpuTemplate::Host.apply(all.clone()).unwrap(), (all, Vec::new()));
    }
}
