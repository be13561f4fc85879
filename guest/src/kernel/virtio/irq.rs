//! How to learn that a device has done something.

use super::mmio::{Device, MILLISECONDS};
use super::queue::Queue;
use crate::TestResult;
use crate::apic::{self, Apic};
use crate::clock::Deadline;
use crate::cmdline::Cmdline;
use crate::cpl0::{self, VIRTIO_VECTOR};
use crate::exit_code::{BAD_COMMAND_LINE, VIRTIO_INTERRUPT, VIRTIO_TIMEOUT};

/// 100 ms: so often a halted CPU looks whether it has waited too long.
const TIMER_TICKS: u32 = 100_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum How {
    /// Looks at the used rings.
    Poll,
    /// Looks at the count of interrupts.
    Interrupt,
    /// Halts until there is an interrupt.
    Halt,
}

/// A device's interrupt, or what stands in for it.
pub(crate) struct Waiter {
    how: How,
    device: Device,
    /// Interrupts before this one was made, and those that were noticed.
    before: u64,
    seen: u64,
}

impl Waiter {
    /// As `wait=` says.
    pub(crate) fn new(cmdline: &Cmdline, device: Device) -> Result<Self, u8> {
        let how = match cmdline.value(b"wait").unwrap_or(b"interrupt") {
            b"poll" => How::Poll,
            b"interrupt" => How::Interrupt,
            b"halt" => How::Halt,
            _ => return Err(BAD_COMMAND_LINE),
        };
        if how != How::Poll {
            let apic = Apic::open()?;
            apic::mask_pics();
            apic::route(device.line, VIRTIO_VECTOR, apic.id());
            cpl0::set_interrupts(true);
            if how == How::Halt {
                apic.start_timer(TIMER_TICKS);
            }
        }
        Ok(Self { how, device, before: count(), seen: count() })
    }

    /// How many interrupts were taken.
    pub(crate) fn interrupts(&self) -> u64 {
        count() - self.before
    }

    /// Asks the device for an interrupt as soon as another request has ended, if that is what is waited
    /// for.
    pub(crate) fn arm(&self, queue: &Queue) {
        queue.ask_for_interrupt(self.how != How::Poll);
    }

    /// Waits until a request of one of the queues has ended.
    pub(crate) fn wait(&mut self, queues: &[Option<Queue>]) -> TestResult {
        let queues = || queues.iter().flatten();
        let ended = || queues().any(Queue::has_used);
        queues().for_each(|queue| self.arm(queue));
        let deadline = Deadline::after(MILLISECONDS);
        while !ended() {
            let seen = self.seen;
            let arrived = match self.how {
                How::Poll => deadline.wait_until(ended),
                How::Interrupt => deadline.wait_until(|| count() != seen),
                How::Halt => deadline.wait_until(|| {
                    cpl0::wait_for_interrupt(VIRTIO_VECTOR, seen);
                    count() != seen
                }),
            };
            if !arrived {
                self.device.check()?;
                return Err(if ended() { VIRTIO_INTERRUPT } else { VIRTIO_TIMEOUT });
            }
            if self.how != How::Poll {
                self.seen = count();
                self.device.acknowledge();
            }
        }
        Ok(())
    }
}

fn count() -> u64 {
    cpl0::interrupts(VIRTIO_VECTOR)
}
