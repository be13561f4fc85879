//! A pair of queues, one to receive and one to transmit, and its backend.

use std::io;
use std::time::Instant;

use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::super::token_bucket::Limiter;
use super::super::{DeviceError, Interest, Queue};
use super::backend::NetBackend;
use super::filter::Filter;
use super::has;
use super::offloads::Offloads;
use super::receive::{Lengths, Receive};
use super::state::State;
use super::transmit::{Moved, Transmit};
use super::vhost::VhostPair;

/// One pair of queues and its backend.
pub(super) struct Pair<'a> {
    /// None once it is gone.
    pub(super) backend: &'a mut Option<Box<dyn NetBackend>>,
    /// None if the driver left the queue out, or the kernel has it.
    pub(super) receive: Option<Receive>,
    pub(super) transmit: Option<Transmit>,
    /// Who serves both queues, if not we.
    pub(super) vhost: Option<&'a mut VhostPair>,
    /// The driver uses it.
    pub(super) active: bool,
    state: &'a State,
}

impl<'a> Pair<'a> {
    /// Without queues, and not in use.
    pub(super) fn new(backend: &'a mut Option<Box<dyn NetBackend>>, state: &'a State) -> Self {
        Self { backend, receive: None, transmit: None, vhost: None, active: false, state }
    }

    /// Takes over the queues.
    pub(super) fn serve(&mut self, queues: [Option<Queue>; 2], features: u64, lengths: Lengths) {
        let send = Offloads::send_negotiated(features);
        let offloads = Offloads::receive_negotiated(features);
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        let [receive, transmit] = queues;
        self.receive = receive.map(|queue| Receive::new(queue, mergeable, offloads, lengths));
        self.transmit = transmit.map(|queue| Transmit::new(queue, send));
    }

    /// Moves a batch of frames in each direction. Whether there may be more.
    pub(super) fn work(
        &mut self,
        send_limiter: &mut Option<Limiter>,
        receive_limiter: &mut Option<Limiter>,
        filter: &Filter,
    ) -> Result<bool, DeviceError> {
        let mut more = false;
        if let Some(transmit) = &mut self.transmit {
            let backend = self.backend.as_deref_mut();
            let moved = transmit.work(backend, send_limiter, self.state)?;
            more |= self.take_in(moved);
        }
        if let (Some(receive), Some(backend)) = (&mut self.receive, self.backend.as_deref_mut()) {
            let moved = receive.work(backend, receive_limiter, filter, self.state)?;
            more |= self.take_in(moved);
        }
        Ok(more)
    }

    /// Lets the kernel work on the queues, if it has them, or stand still.
    pub(super) fn run_vhost(&mut self, run: bool) -> io::Result<()> {
        let Some(vhost) = &mut self.vhost else { return Ok(()) };
        let backend = self.backend.as_ref().filter(|_| run && self.active);
        let tap = backend.and_then(|backend| backend.fd());
        let runs = tap.is_some();
        match vhost.run(tap) {
            // It cannot have a tap that was deleted.
            Err(error) if runs => {
                if self.lose_backend()? {
                    Ok(())
                } else {
                    Err(error)
                }
            }
            result => result,
        }
    }

    /// Lets go of the backend if it is gone. Whether it is.
    pub(super) fn lose_backend(&mut self) -> io::Result<bool> {
        let check = self.backend.as_ref().map(|backend| backend.check());
        let Some(Err(error)) = check else { return Ok(false) };
        self.state.log_gone(&error);
        if let Some(vhost) = &mut self.vhost {
            vhost.run(None)?;
        }
        *self.backend = None;
        Ok(true)
    }

    /// Whether the kernel may touch guest memory.
    pub(super) fn is_running(&self) -> bool {
        self.vhost.as_ref().is_some_and(|vhost| vhost.is_running())
    }

    fn take_in(&mut self, moved: Moved) -> bool {
        if moved == Moved::Gone {
            *self.backend = None;
            if let Some(transmit) = &mut self.transmit {
                transmit.backend_gone();
            }
        }
        moved != Moved::Nothing
    }

    /// Tells the driver what it was not told yet of the frames that it sent.
    pub(super) fn notify(&mut self) -> Result<(), DeviceError> {
        Ok(self.transmit.as_mut().map_or(Ok(()), Transmit::notify)?)
    }

    pub(super) fn disable_notifications(&mut self) -> Result<(), DeviceError> {
        if let Some(transmit) = &mut self.transmit {
            transmit.disable_notifications()?;
        }
        if let Some(receive) = &mut self.receive {
            receive.disable_notifications()?;
        }
        Ok(())
    }

    pub(super) fn more_came(&mut self) -> Result<bool, DeviceError> {
        let mut more = false;
        if let Some(transmit) = &mut self.transmit {
            more |= transmit.more_came()?;
        }
        if let (Some(receive), Some(_)) = (&mut self.receive, &self.backend) {
            more |= receive.more_came()?;
        }
        Ok(more)
    }

    /// What its backend must become before anything can move again.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        let fd = self.backend.as_ref().filter(|_| self.active)?.fd()?;
        let read = self.receive.as_ref().is_some_and(Receive::is_waiting);
        let write = self.transmit.as_ref().is_some_and(Transmit::is_blocked);
        // Without any, an error or a hang-up would still end each wait.
        (read || write).then_some(Interest { fd, read, write })
    }

    /// The backend may give and take frames again.
    pub(super) fn wake(&mut self) {
        if let Some(receive) = &mut self.receive {
            receive.set_ready();
        }
        if let Some(transmit) = &mut self.transmit {
            transmit.unblock();
        }
    }

    /// When `work` is to look again, though nothing has been heard.
    pub(super) fn look_at(&self) -> Option<Instant> {
        if !self.active {
            return None;
        }
        let receive = self.receive.as_ref().filter(|_| self.backend.is_some());
        let receive = receive.and_then(Receive::held_until);
        let transmit = self.transmit.as_ref().and_then(Transmit::look_at);
        receive.into_iter().chain(transmit).min()
    }
}

impl Drop for Pair<'_> {
    /// The kernel must not touch the driver's memory after the session.
    fn drop(&mut self) {
        let _ = self.run_vhost(false); // It does not, in any case.
    }
}
