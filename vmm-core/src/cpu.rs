//! What a guest sees of the processor: CPUID as data, templates that make it the same on hosts of
//! several generations, and the model-specific registers that are kept from it.
//!
//! ```no_run
//! use sparkler::cpu::CpuTemplate;
//! use sparkler::{Kernel, Vm};
//!
//! let vm = Vm::builder()
//!     .cpu_template(CpuTemplate::Baseline)
//!     .cpuid(|_vcpu, entries| {
//!         // No AVX2 (leaf 7, subleaf 0, EBX bit 5).
//!         for entry in entries.iter_mut().filter(|entry| entry.is(7, 0)) {
//!             entry.ebx &= !(1 << 5);
//!         }
//!     })
//!     .kernel(Kernel::file("vmlinux")?)
//!     .build()?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;

use crate::arch::x86_64;
pub use crate::arch::x86_64::{
    CpuTemplate, CpuTemplateError, CpuidEntry, DENIED_MSRS, DeniedMsrs, Missing,
};
use crate::{BuildError, host};

/// The CPUID of a machine's first vCPU on this host, as [`guest_cpuid`] tells it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct GuestCpuid {
    /// Every leaf.
    pub entries: Vec<CpuidEntry>,
    /// What the template has and this host has not. Machines that shall run alike on several hosts need
    /// ones on which nothing is missing.
    pub missing: Vec<Missing>,
}

/// What CPUID would say to a guest with one vCPU, ACPI, and this template.
///
/// On hosts with PVM a guest may see more than this: the bits of the host's processor are added there.
///
/// # Errors
/// If there is no usable KVM, or the template is not for this host's processor.
pub fn guest_cpuid(template: CpuTemplate) -> Result<GuestCpuid, BuildError> {
    let model = CpuModel { template, ..CpuModel::default() };
    let kvm = host::open_fit()?;
    let template = x86_64::VcpuTemplate::new(&kvm, 1, false, &model)?;
    Ok(GuestCpuid { entries: template.cpuid_of(0)?, missing: template.missing().to_vec() })
}

/// Sees and edits the leaves of one vCPU.
pub(crate) type CpuidHook = Box<dyn Fn(u8, &mut Vec<CpuidEntry>) + Send + Sync>;

/// All that was asked for.
pub(crate) struct CpuModel {
    pub(crate) template: CpuTemplate,
    pub(crate) hook: Option<CpuidHook>,
    pub(crate) msr_filter: bool,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self { template: CpuTemplate::Host, hook: None, msr_filter: true }
    }
}

impl fmt::Debug for CpuModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CpuModel")
            .field("template", &self.template)
            .field("hook", &self.hook.is_some())
            .field("msr_filter", &self.msr_filter)
            .finish()
    }
}
