//! `--cpu-affinity 0=2-3`: parsed here, checked with the host when the machine is built.

use std::str::FromStr;

use sparkler::{CpuSet, ParseCpuSetError, Placement};
use thiserror::Error;

/// Which threads run on which CPUs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AffinityArg {
    who: Who,
    cpus: CpuSet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Vcpu(u32),
    Vcpus,
    Devices,
}

impl AffinityArg {
    pub(crate) fn add_to(&self, placement: Placement) -> Placement {
        let cpus = self.cpus.clone();
        match self.who {
            Who::Vcpu(index) => placement.vcpu(index, cpus),
            Who::Vcpus => placement.vcpus(cpus),
            Who::Devices => placement.devices(cpus),
        }
    }
}

/// What is wrong with the text after `--cpu-affinity`.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub(crate) enum AffinityArgError {
    #[error("write THREADS=CPUS, such as 0=2, vcpus=2-3 or devices=0,1")]
    Form,
    #[error("no threads {0:?}; there are vcpus, devices, and the number of a vCPU")]
    Who(String),
    #[error(transparent)]
    Cpus(#[from] ParseCpuSetError),
}

impl FromStr for AffinityArg {
    type Err = AffinityArgError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (who, cpus) = text.split_once('=').ok_or(AffinityArgError::Form)?;
        let who = match who {
            "vcpus" => Who::Vcpus,
            "devices" => Who::Devices,
            number => match number.parse() {
                Ok(index) => Who::Vcpu(index),
                Err(_) => return Err(AffinityArgError::Who(number.to_owned())),
            },
        };
        Ok(Self { who, cpus: cpus.parse()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_cpus() {
        let parsed = |text: &str| text.parse::<AffinityArg>();
        let both = CpuSet::from_iter([2, 3]);
        for (text, who) in
            [("1=2,3", Who::Vcpu(1)), ("vcpus=2-3", Who::Vcpus), ("devices=2-3", Who::Devices)]
        {
            assert_eq!(parsed(text), Ok(AffinityArg { who, cpus: both.clone() }));
        }
        assert_eq!(parsed("2"), Err(AffinityArgError::Form));
        assert_eq!(parsed("net=2"), Err(AffinityArgError::Who("net".to_owned())));
        for text in ["0=", "0=x", "devices=1-"] {
            assert!(matches!(parsed(text), Err(AffinityArgError::Cpus(_))), "{text}");
        }
    }
}
