//! `--cpu-template`, and `sparkler check --cpuid`: what CPUID says to a guest.

use clap::ValueEnum;
use serde_json::{Value, json};
use sparkler::cpu::{self, CpuTemplate, CpuidEntry, GuestCpuid};

use crate::{
    check::UNFIT,
    report::{Failure, print},
};

/// A template as the command line says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum TemplateArg {
    #[default]
    Host,
    Baseline,
}

impl From<TemplateArg> for CpuTemplate {
    fn from(template: TemplateArg) -> Self {
        match template {
            TemplateArg::Host => Self::Host,
            TemplateArg::Baseline => Self::Baseline,
        }
    }
}

/// Prints the leaves, and what this host lacks of the template.
pub(crate) fn show(template: TemplateArg, as_json: bool) -> Result<u8, Failure> {
    let cpuid = cpu::guest_cpuid(template.into()).map_err(Failure::refused)?;
    if as_json {
        print(format!("{}\n", to_json(&cpuid)))?;
    } else {
        let leaves = cpuid.entries.iter().map(|entry| format!("{entry}\n"));
        let missing = cpuid.missing.iter().map(|missing| format!("missing here: {missing}\n"));
        print(leaves.chain(missing).collect::<String>())?;
    }
    Ok(if cpuid.missing.is_empty() { 0 } else { UNFIT })
}

fn to_json(cpuid: &GuestCpuid) -> Value {
    let entry = |&CpuidEntry { leaf, subleaf, eax, ebx, ecx, edx }: &CpuidEntry| json!({ "leaf": leaf, "subleaf": subleaf, "eax": eax, "ebx": ebx, "ecx": ecx, "edx": edx });
    let missing = |missing: &cpu::Missing| {
        json!({
            "leaf": missing.leaf,
            "subleaf": missing.subleaf,
            "register": missing.register,
            "bits": missing.bits,
        })
    };
    json!({
        "cpuid": cpuid.entries.iter().map(entry).collect::<Vec<_>>(),
        "missing": cpuid.missing.iter().map(missing).collect::<Vec<_>>(),
    })
}
