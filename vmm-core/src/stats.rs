//! What a machine counts, for whoever watches it.

use std::sync::atomic::{AtomicU64, Ordering};

use sparkler_devices::virtio::TransportStats;

/// The counters of a machine, since it was built. They are read one after the other while the machine runs
/// on, so two of them may be of slightly different moments.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Stats {
    /// Why each vCPU left the guest, by index.
    pub vcpus: Vec<ExitStats>,
    /// The virtio devices, in the order in which they were added.
    pub devices: Vec<DeviceStats>,
    /// Bytes that the guest printed and that were dropped, because the console's writer was too slow, or
    /// failed.
    pub console_output_dropped: u64,
    /// Times that the guest wrote to a [`SharedRegion`](crate::SharedRegion), in vain.
    pub shared_region_writes_dropped: u64,
    /// Bytes of memory that the guest has.
    pub memory_size: u64,
    /// Bytes of it that the host holds in its own memory now. To count them takes about a millisecond for
    /// every 4 GiB of guest memory.
    pub memory_resident: u64,
}

impl Stats {
    /// The exits of all vCPUs together.
    #[must_use]
    pub fn exits(&self) -> ExitStats {
        self.vcpus.iter().fold(ExitStats::default(), |sum, vcpu| sum.plus(vcpu))
    }
}

/// A virtio device and what it has done.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceStats {
    /// The number of its type (virtio 1.2, section 5): 1 for a network card, 2 for a disk, ...
    pub device_type: u32,
    /// What its transport counts.
    pub transport: TransportStats,
    /// What the device counts, by name.
    pub counters: Vec<(&'static str, u64)>,
}

macro_rules! exits {
    ($($(#[$doc:meta])* $name:ident $reason:ident,)*) => {
        /// Why a vCPU left the guest for the monitor, and how often. What KVM serves by itself (timers,
        /// interrupts, the notifications of virtio devices) is not among it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        #[non_exhaustive]
        pub struct ExitStats {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl ExitStats {
            /// Each reason by name, with its number.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }

            fn plus(self, other: &Self) -> Self {
                Self { $($name: self.$name.saturating_add(other.$name),)* }
            }
        }

        /// Why a vCPU left the guest.
        #[derive(Debug, Clone, Copy)]
        pub(crate) enum Reason {
            $($reason,)*
        }

        /// The exits of one vCPU, as its thread counts them. On cache lines of their own: no two vCPUs wait
        /// for each other.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub(crate) struct ExitCounters {
            $($name: AtomicU64,)*
        }

        impl ExitCounters {
            pub(crate) fn snapshot(&self) -> ExitStats {
                ExitStats { $($name: self.$name.load(Ordering::Relaxed),)* }
            }

            fn counter(&self, reason: Reason) -> &AtomicU64 {
                match reason {
                    $(Reason::$reason => &self.$name,)*
                }
            }
        }
    };
}

exits! {
    /// It read a port.
    port_reads PortRead,
    /// It wrote to a port.
    port_writes PortWrite,
    /// It read a device's memory.
    mmio_reads MmioRead,
    /// It wrote to a device's memory.
    mmio_writes MmioWrite,
    /// A signal of the host came, by which vCPUs are also paused and stopped.
    signals Signal,
    /// It waits to be started by another vCPU, or KVM wanted another try.
    retries Retry,
    /// Anything else. The guest cannot go on from there.
    others Other,
}

impl ExitCounters {
    /// Counts an exit. Only the vCPU's own thread does so.
    pub(crate) fn count(&self, reason: Reason) {
        let counter = self.counter(reason);
        // One writer: so no locked instruction is needed.
        counter.store(counter.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_counted_by_reason() {
        let (a, b) = (ExitCounters::default(), ExitCounters::default());
        a.count(Reason::PortRead);
        a.count(Reason::PortRead);
        b.count(Reason::PortRead);
        b.count(Reason::Other);
        let vcpus = vec![a.snapshot(), b.snapshot()];
        let stats = Stats { vcpus, ..Stats::default() };
        assert_eq!(stats.exits(), ExitStats { port_reads: 3, others: 1, ..ExitStats::default() });
        assert_eq!(stats.exits().iter().filter(|(_, number)| *number > 0).count(), 2);
        assert_eq!(stats.exits().iter().next(), Some(("port_reads", 3)));
    }
}
