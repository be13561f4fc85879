use std::borrow::Cow;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use super::CpuSet;
use crate::sys::scheduler;

/// A [`Placement`](super::Placement) that this host allows, for the threads of one machine.
#[derive(Debug, Default)]
pub(crate) struct Threads {
    /// By index; missing ones run where they are started.
    pub(super) vcpus: Vec<Option<CpuSet>>,
    pub(super) devices: Option<CpuSet>,
    pub(super) nice: Option<i32>,
    name_prefix: Option<String>,
    warned: AtomicBool,
}

/// What a thread is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Role {
    Vcpu(u8),
    /// A virtio device, or one direction of the console.
    Device,
}

impl Threads {
    pub(super) fn new(
        vcpus: Vec<Option<CpuSet>>,
        devices: CpuSet,
        nice: Option<i32>,
        name_prefix: Option<String>,
    ) -> Self {
        Self { vcpus, devices: Some(devices), nice, name_prefix, warned: AtomicBool::new(false) }
    }

    pub(crate) fn name_prefix(&self) -> Option<&str> {
        self.name_prefix.as_deref()
    }

    /// What a thread called `name` is called on this host, and in log lines.
    pub(crate) fn full_name<'a>(&self, name: &'a str) -> Cow<'a, str> {
        match &self.name_prefix {
            Some(prefix) => format!("{prefix}/{name}").into(),
            None => name.into(),
        }
    }

    /// Puts the calling thread, called `name`, in its place.
    pub(crate) fn enter(&self, role: Role, name: &str) -> io::Result<()> {
        if self.name_prefix.is_some() {
            scheduler::set_name(&self.full_name(name));
        }
        let cpus = match role {
            Role::Vcpu(index) => self.vcpus.get(usize::from(index)).and_then(Option::as_ref),
            Role::Device => self.devices.as_ref(),
        };
        cpus.map_or(Ok(()), scheduler::set_affinity)?;
        self.nice.map_or(Ok(()), scheduler::set_nice)
    }

    /// The same for a thread that does its work wherever it runs: what fails was allowed a moment ago,
    /// and the host has changed since.
    pub(crate) fn enter_if_possible(&self, name: &str) {
        if let Err(error) = self.enter(Role::Device, name) {
            // A guest can start such threads as often as it likes.
            if !self.warned.swap(true, Ordering::Relaxed) {
                let name = self.full_name(name);
                log::warn!("cannot put the thread {name} in its place: {error}");
            }
        }
    }
}
