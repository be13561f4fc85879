use std::sync::{Arc, MutexGuard, Weak};

use sparkler_devices::Interrupt;
use thiserror::Error;

use crate::Outcome;
use crate::control::Control;
use crate::machine::Machine;

/// Governs a running machine, from any thread and any number of them.
///
/// Every call may be made at any time, in any order, any number of times, and while others are being
/// made; pause, resume and reset take effect one after the other, a stop at once.
///
/// | call | while it runs | while it is paused | once it has ended |
/// |---|---|---|---|
/// | [`stop`](Self::stop) | ends it: [`Outcome::Stopped`] | the same | nothing; the outcome stays what it was |
/// | [`pause`](Self::pause) | paused when this returns | nothing | [`ControlError::Ended`] |
/// | [`resume`](Self::resume) | nothing | runs when this returns | [`ControlError::Ended`] |
/// | [`reset`](Self::reset), after [`ResetAction::End`](crate::ResetAction::End) | ends it: [`Outcome::Reset`] | the same | [`ControlError::Ended`] |
/// | [`reset`](Self::reset), after [`ResetAction::Restart`](crate::ResetAction::Restart) | starts anew before this returns | the same, and stays paused | [`ControlError::Ended`] |
/// | [`shutdown`](Self::shutdown) | presses the power button; the rest is up to the guest | the guest sees it when it goes on | [`ControlError::Ended`] |
///
/// A machine that ends while a call waits for something else ends the wait: [`ControlError::Ended`]. One
/// that ends right after a call has returned `Ok` is the one thing that a caller cannot rule out.
///
/// # What paused means
/// No vCPU executes an instruction. Requests that the guest had made to virtio devices and that were being
/// worked on are complete, and no further one begins; packets and other input from outside wait. What it
/// printed is written, unless the console's writer makes no progress for
/// [`DRAIN_TIMEOUT`](crate::Console::DRAIN_TIMEOUT); nothing is handed to it. The guest's clocks go on, and it
/// is told that it stood still where it has KVM's clock, so that its watchdogs do not bark.
///
/// A handle may outlive the machine. All that it then still holds of it is one file descriptor and some memory
/// for its outcome and timeline.
///
/// ```no_run
/// use std::thread;
/// use std::time::Duration;
/// use sparkler::{Kernel, Vm};
///
/// let running = Vm::builder().kernel(Kernel::file("/boot/vmlinuz")?).build()?.start()?;
/// let handle = running.handle();
/// // Five seconds after it was asked to, the guest is switched off if it has not done so by itself.
/// thread::spawn(move || {
///     if handle.shutdown().is_ok() {
///         thread::sleep(Duration::from_secs(5));
///     }
///     handle.stop();
/// });
/// println!("{}", running.wait()?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct VmHandle {
    control: Arc<Control>,
    machine: Weak<Machine>,
}

/// What a machine that was started does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum VmState {
    /// The guest runs.
    Running,
    /// It was paused, or is about to be.
    Paused,
    /// It has ended; its threads may still be on their way out.
    Ended,
}

/// Why a machine did not do what a [`VmHandle`] asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ControlError {
    /// It has ended, before the call or during it.
    #[error("the machine has ended")]
    Ended,
    /// There is no power button: the machine was built without ACPI.
    #[error("the machine has no power button: it was built without ACPI")]
    NoPowerButton,
    /// The call waits for the thread that makes it: one of the machine's own, in a device of the caller's.
    #[error("a device's own code cannot wait for its machine: make this call from another thread")]
    OwnThread,
}

impl VmHandle {
    /// Makes the guest stop where it is. If it has not ended by itself before, its outcome is
    /// [`Outcome::Stopped`]. Returns at once; [`RunningVm::wait`](crate::RunningVm::wait) waits for the end.
    pub fn stop(&self) {
        self.control.end(Ok(Outcome::Stopped));
    }

    /// Pauses the machine, and returns when it is [paused](Self#what-paused-means). That takes as long as
    /// its devices need for the requests in progress.
    ///
    /// # Errors
    /// [`ControlError::Ended`], [`ControlError::OwnThread`].
    pub fn pause(&self) -> Result<(), ControlError> {
        self.in_turn(|control, machine| {
            control.pause()?;
            machine.pause(|| control.is_ending())
        })
    }

    /// Lets a paused machine go on, however often it was paused.
    ///
    /// # Errors
    /// [`ControlError::Ended`], [`ControlError::OwnThread`].
    pub fn resume(&self) -> Result<(), ControlError> {
        self.in_turn(|control, machine| {
            machine.resume();
            control.resume()
        })
    }

    /// Presses the machine's reset button: what follows is the same as when the guest asks for a reset.
    ///
    /// # Errors
    /// [`ControlError::Ended`], [`ControlError::OwnThread`].
    pub fn reset(&self) -> Result<(), ControlError> {
        self.in_turn(|control, machine| match machine.blueprint {
            Some(_) => control.reset(),
            None if control.end(Ok(Outcome::Reset)) => Ok(()),
            None => Err(ControlError::Ended),
        })
    }

    /// Presses the machine's power button, and returns at once. What follows is up to the guest; a machine that is to
    /// end for sure needs a limit and then [`stop`](Self::stop).
    ///
    /// The button is an ACPI one: `PNP0C0C`, with a generic event device, `ACPI0013`, to tell of it. Linux
    /// needs `CONFIG_ACPI_BUTTON` (a module called `button` in most distributions), and something in user
    /// space that acts on it: systemd-logind or acpid does, or whatever reads `KEY_POWER` from the button's
    /// input device. A press early in the guest's boot is kept until its kernel listens; it is lost if
    /// nothing in its user space does by then.
    ///
    /// # Errors
    /// [`ControlError::Ended`]; [`ControlError::NoPowerButton`] without [`acpi`](crate::VmBuilder::acpi).
    pub fn shutdown(&self) -> Result<(), ControlError> {
        let look = self.control.look();
        let machine = self.machine(&look)?;
        let button = machine.lines.power_button.as_ref().ok_or(ControlError::NoPowerButton)?;
        // It can fail only while the machine starts anew, when there is nobody to see it.
        let _ = button.trigger();
        Ok(())
    }

    /// What it does now.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.control.state()
    }

    pub(crate) fn new(control: Arc<Control>, machine: &Arc<Machine>) -> Self {
        Self { control, machine: Arc::downgrade(machine) }
    }

    /// Does what takes several steps, one caller after the other.
    fn in_turn(
        &self,
        steps: impl FnOnce(&Control, &Machine) -> Result<(), ControlError>,
    ) -> Result<(), ControlError> {
        if self.control.is_vcpu_thread() {
            return Err(ControlError::OwnThread);
        }
        let look = self.control.look();
        if self.machine(&look)?.virtio.is_own_thread() {
            return Err(ControlError::OwnThread);
        }
        drop(look);
        let turn = self.control.turn();
        let machine = self.machine(&turn)?;
        let result = steps(&self.control, &machine);
        drop(machine); // Before the turn is over.
        result
    }

    /// The machine, unless it has ended. Whoever tears it down ends it first and then takes each of these
    /// locks once: so it is not this reference that frees the machine's resources, at some later time.
    fn machine(&self, _lock: &MutexGuard<'_, ()>) -> Result<Arc<Machine>, ControlError> {
        let machine = if self.control.is_ending() { None } else { self.machine.upgrade() };
        machine.ok_or(ControlError::Ended)
    }
}
