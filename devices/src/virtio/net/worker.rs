//! The life of a network card between `DRIVER_OK` and reset: queues on one side, backends on the other.

use std::io;
use std::time::Instant;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF,
};

use super::super::token_bucket::Limiter;
use super::super::{DeviceError, Interest, Queue, Session};
use super::backend::NetBackend;
use super::control::{Commands, Control};
use super::filter::Filter;
use super::offloads::Offloads;
use super::receive::{Lengths, Receive};
use super::state::State;
use super::transmit::{self, Moved, Transmit};
use super::vhost::{Events, Vhost, VhostError, VhostPair};
use super::{NetDevice, has};

/// Serves the card until the session ends.
pub(super) fn run(device: &mut NetDevice, session: &mut Session) -> Result<(), DeviceError> {
    let features = session.features();
    let lengths = Lengths { longest: device.longest_frame(), promised: device.promised_frame() };
    let NetDevice { backends, mac, state, send_limiter, receive_limiter, vhost, .. } = device;
    state.begin_session(session.waker(), has(features, VIRTIO_NET_F_GUEST_ANNOUNCE));
    let mut queues = session.take_queues();
    // Before the pairs: its index may be that of a pair not in use.
    let control = control_index(features, backends.len());
    let control = control.and_then(|index| take(&mut queues, index));
    let control = control.map(|queue| Control::new(queue, features, session)).transpose()?;
    let mut pairs: Vec<_> = backends.iter_mut().map(Pair::new).collect();
    // More than one only when the driver says so.
    pairs.iter_mut().take(1).for_each(|pair| pair.active = true);
    let events = match vhost {
        Some(vhost) => Some(hand_over(&mut pairs, queues, vhost, session)?),
        None => {
            for (index, pair) in (0..).zip(&mut pairs) {
                pair.serve(take_pair(&mut queues, index), features, lengths);
            }
            None
        }
    };
    let card = Card {
        pairs,
        events,
        filter: Filter::new(*mac),
        offloads: Offloads::NONE,
        carrier: None,
        state,
    };
    let worker = Worker { session, card, control, send_limiter, receive_limiter };
    let result = worker.serve(Offloads::receive_negotiated(features));
    state.end_session(*mac);
    result
}

/// Where the control queue is, if there is one: behind all pairs that the driver knows of (5.1.2).
fn control_index(features: u64, pairs: usize) -> Option<u16> {
    let pairs = if has(features, VIRTIO_NET_F_MQ) { pairs } else { 1 };
    let index = u16::try_from(pairs.saturating_mul(2)).ok();
    index.filter(|_| has(features, VIRTIO_NET_F_CTRL_VQ))
}

/// Gives the queues to the kernel.
fn hand_over<'a>(
    pairs: &mut [Pair<'a>],
    mut queues: Vec<Queue>,
    vhost: &'a mut Vhost,
    session: &Session,
) -> io::Result<&'a Events> {
    let Vhost { pairs: vhosts, events } = vhost;
    events.clear();
    for (index, (pair, vhost)) in (0..).zip(pairs.iter_mut().zip(vhosts)) {
        vhost.set_up(session, take_pair(&mut queues, index), events)?;
        pair.vhost = Some(vhost);
    }
    Ok(events)
}

/// The queues of a pair: to receive, and to transmit.
fn take_pair(queues: &mut Vec<Queue>, pair: u16) -> [Option<Queue>; 2] {
    let first = pair.saturating_mul(2);
    [first, first.saturating_add(1)].map(|index| take(queues, index))
}

fn take(queues: &mut Vec<Queue>, index: u16) -> Option<Queue> {
    let position = queues.iter().position(|queue| queue.index() == index)?;
    Some(queues.swap_remove(position))
}

/// One pair of queues and its backend.
struct Pair<'a> {
    /// None once it is gone.
    backend: &'a mut Option<Box<dyn NetBackend>>,
    /// None if the driver left the queue out, or the kernel has it.
    receive: Option<Receive>,
    transmit: Option<Transmit>,
    /// Who serves both queues, if not we.
    vhost: Option<&'a mut VhostPair>,
    /// The driver uses it.
    active: bool,
}

impl<'a> Pair<'a> {
    /// Without queues, and not in use.
    fn new(backend: &'a mut Option<Box<dyn NetBackend>>) -> Self {
        Self { backend, receive: None, transmit: None, vhost: None, active: false }
    }

    /// Takes over the queues.
    fn serve(&mut self, queues: [Option<Queue>; 2], features: u64, lengths: Lengths) {
        let send = Offloads::send_negotiated(features);
        let offloads = Offloads::receive_negotiated(features);
        let mergeable = has(features, VIRTIO_NET_F_MRG_RXBUF);
        let [receive, transmit] = queues;
        self.receive = receive.map(|queue| Receive::new(queue, mergeable, offloads, lengths));
        self.transmit = transmit.map(|queue| Transmit::new(queue, send));
    }

    /// Moves a batch of frames in each direction. Whether there may be more.
    fn work(
        &mut self,
        send_limiter: &mut Option<Limiter>,
        receive_limiter: &mut Option<Limiter>,
        filter: &Filter,
        state: &State,
    ) -> Result<bool, DeviceError> {
        let mut more = false;
        if let Some(transmit) = &mut self.transmit {
            let backend = self.backend.as_deref_mut();
            let moved = transmit.work(backend, send_limiter, state)?;
            more |= self.take_in(moved);
        }
        if let (Some(receive), Some(backend)) = (&mut self.receive, self.backend.as_deref_mut()) {
            let moved = receive.work(backend, receive_limiter, filter, state)?;
            more |= self.take_in(moved);
        }
        Ok(more)
    }

    /// Lets the kernel work on the queues, if it has them, or stand still.
    fn run_vhost(&mut self, run: bool) -> io::Result<()> {
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
    fn lose_backend(&mut self) -> io::Result<bool> {
        let check = self.backend.as_ref().map(|backend| backend.check());
        let Some(Err(error)) = check else { return Ok(false) };
        transmit::gone(&error);
        if let Some(vhost) = &mut self.vhost {
            vhost.run(None)?;
        }
        *self.backend = None;
        Ok(true)
    }

    /// Whether the kernel may touch guest memory.
    fn is_running(&self) -> bool {
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

    fn disable_notifications(&mut self) -> Result<(), DeviceError> {
        if let Some(transmit) = &mut self.transmit {
            transmit.disable_notifications()?;
        }
        if let Some(receive) = &mut self.receive {
            receive.disable_notifications()?;
        }
        Ok(())
    }

    fn more_came(&mut self) -> Result<bool, DeviceError> {
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
    fn interest(&self) -> Option<Interest<'_>> {
        let fd = self.backend.as_ref().filter(|_| self.active)?.fd()?;
        let read = self.receive.as_ref().is_some_and(Receive::is_waiting);
        let write = self.transmit.as_ref().is_some_and(Transmit::is_blocked);
        // Without any, an error or a hang-up would still end each wait.
        (read || write).then_some(Interest { fd, read, write })
    }

    /// The backend may give and take frames again.
    fn wake(&mut self) {
        if let Some(receive) = &mut self.receive {
            receive.set_ready();
        }
        if let Some(transmit) = &mut self.transmit {
            transmit.unblock();
        }
    }

    /// When the rate limit lets something through again that `work` would look at then.
    fn held_until(&self) -> Option<Instant> {
        if !self.active {
            return None;
        }
        let receive = self.receive.as_ref().filter(|_| self.backend.is_some());
        let receive = receive.and_then(Receive::held_until);
        let transmit = self.transmit.as_ref().and_then(Transmit::held_until);
        receive.into_iter().chain(transmit).min()
    }
}

impl Drop for Pair<'_> {
    /// The kernel must not touch the driver's memory after the session.
    fn drop(&mut self) {
        let _ = self.run_vhost(false); // It does not, in any case.
    }
}

/// All pairs, and what the driver commands.
struct Card<'a> {
    pairs: Vec<Pair<'a>>,
    /// What the kernel has to tell, if it serves the queues.
    events: Option<&'a Events>,
    filter: Filter,
    /// What may be left undone in frames that the driver receives.
    offloads: Offloads,
    /// What was said of the cable's other end.
    carrier: Option<bool>,
    state: &'a State,
}

impl Card<'_> {
    fn start(&mut self, session: &Session, offloads: Offloads) -> io::Result<()> {
        for pair in &mut self.pairs {
            if let Some(backend) = pair.backend {
                backend.start(session.waker())?;
                backend.set_active(pair.active)?;
                backend.set_receive_offloads(offloads)?;
            }
        }
        self.offloads = offloads;
        Ok(())
    }

    fn try_set_pairs(&mut self, count: usize) -> io::Result<()> {
        for (index, pair) in self.pairs.iter_mut().enumerate() {
            let active = index < count;
            if !active {
                pair.run_vhost(false)?;
            }
            if let Some(backend) = pair.backend.as_mut().filter(|_| active != pair.active) {
                backend.set_active(active)?;
            }
            pair.active = active;
            pair.wake();
        }
        Ok(())
    }

    fn try_set_receive_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        for pair in &mut self.pairs {
            if let Some(backend) = pair.backend {
                backend.set_receive_offloads(offloads)?;
            }
            if let Some(receive) = &mut pair.receive {
                receive.offloads = offloads;
            }
        }
        self.offloads = offloads;
        Ok(())
    }

    fn active_pairs(&self) -> usize {
        self.pairs.iter().filter(|pair| pair.active).count()
    }

    /// Lets the kernel serve the queues as long as there is a link.
    fn run_vhost(&mut self, run: bool) -> io::Result<()> {
        let run = run && self.state.link();
        self.pairs.iter_mut().try_for_each(|pair| pair.run_vhost(run))
    }

    /// Passes on what the kernel told before the last wait ended; or, when it is the last time for long, until
    /// now.
    fn hear_vhost(&mut self, session: &Session, last: bool) -> Result<(), DeviceError> {
        let Some(events) = self.events else { return Ok(()) };
        if (last || session.is_ready(Events::CALL)) && events.take_call() {
            session.used()?;
        }
        if (last || session.is_ready(Events::ERROR)) && events.take_error() {
            let mut gone = false;
            for pair in self.pairs.iter_mut().filter(|pair| pair.active) {
                gone |= pair.lose_backend()?;
            }
            if !gone {
                return Err(DeviceError::Driver(Box::new(VhostError)));
            }
            // A tap is long about to be deleted, and each frame meanwhile is one more error.
            events.take_error();
        }
        Ok(())
    }

    /// The cable is as good as unplugged if there is nothing at its other end.
    fn check_carrier(&mut self) {
        let carrier = self.pairs.iter().any(|pair| pair.active && pair.backend.is_some());
        if self.carrier != Some(carrier) {
            self.carrier = Some(carrier);
            self.state.set_carrier(carrier);
        }
    }
}

impl Commands for Card<'_> {
    fn filter(&mut self) -> &mut Filter {
        &mut self.filter
    }

    fn set_pairs(&mut self, pairs: u16) -> bool {
        let (before, pairs) = (self.active_pairs(), usize::from(pairs));
        if pairs == before || !(1..=self.pairs.len()).contains(&pairs) {
            return pairs == before;
        }
        let result = self.try_set_pairs(pairs);
        if result.is_err() {
            // As it was, as far as the backends can. They have said no already.
            let _ = self.try_set_pairs(before);
        }
        result.is_ok()
    }

    fn set_receive_offloads(&mut self, offloads: Offloads) -> bool {
        let before = self.offloads;
        if offloads == before {
            return true;
        }
        let result = self.try_set_receive_offloads(offloads);
        if result.is_err() {
            let _ = self.try_set_receive_offloads(before); // As above.
        }
        result.is_ok()
    }
}

struct Worker<'a> {
    session: &'a mut Session,
    card: Card<'a>,
    control: Option<Control>,
    send_limiter: &'a mut Option<Limiter>,
    receive_limiter: &'a mut Option<Limiter>,
}

impl Worker<'_> {
    fn serve(mut self, offloads: Offloads) -> Result<(), DeviceError> {
        self.card.start(self.session, offloads)?;
        self.card.check_carrier();
        loop {
            self.disable_notifications()?;
            while self.work()? {}
            if self.session.is_stopping() {
                return Ok(());
            }
            if self.session.is_pausing() || !self.more_came()? {
                if !self.wait()? {
                    return Ok(());
                }
                self.wake();
            }
        }
    }

    /// Lets each queue do something. Whether there may be more.
    fn work(&mut self) -> Result<bool, DeviceError> {
        let halts = self.session.is_stopping() || self.session.is_pausing();
        let changed = !halts && self.card.state.take_changed();
        self.card.run_vhost(!halts)?;
        self.card.hear_vhost(self.session, halts)?;
        if halts {
            return Ok(false);
        }
        if changed {
            self.session.config_changed()?;
        }
        let mut more = false;
        if let Some(control) = &mut self.control {
            let state = self.card.state;
            more |= control.work(&mut self.card, state)?;
        }
        let Card { pairs, filter, state, .. } = &mut self.card;
        for pair in pairs.iter_mut().filter(|pair| pair.active) {
            more |= pair.work(self.send_limiter, self.receive_limiter, filter, state)?;
        }
        self.card.check_carrier();
        Ok(more)
    }

    fn disable_notifications(&mut self) -> Result<(), DeviceError> {
        let mut pairs = self.card.pairs.iter_mut().filter(|pair| pair.active);
        pairs.try_for_each(Pair::disable_notifications)
    }

    /// Asks for the notifications that are needed. Whether there is something to do already.
    fn more_came(&mut self) -> Result<bool, DeviceError> {
        let mut more = false;
        if let Some(control) = &mut self.control {
            more |= control.more_came()?;
        }
        for pair in self.card.pairs.iter_mut().filter(|pair| pair.active) {
            more |= pair.more_came()?;
        }
        Ok(more)
    }

    /// Waits for the driver, the backends, and the rate limit. False: the session is to end.
    fn wait(&mut self) -> io::Result<bool> {
        let until = self.card.pairs.iter().filter_map(Pair::held_until).min();
        let timeout = until.map(|until| until.saturating_duration_since(Instant::now()));
        // A pause that `work` has not seen must not find the kernel at work.
        self.session.set_busy(self.card.pairs.iter().any(Pair::is_running));
        let events = self.card.events.into_iter().flat_map(Events::interests);
        let backends = self.card.pairs.iter().filter_map(Pair::interest);
        let control = self.control.as_ref().and_then(Control::interest);
        self.session.wait_for(events.chain(backends).chain(control), timeout)
    }

    /// Lets the backends go on that the wait ended for.
    fn wake(&mut self) {
        let mut waited_for = self.card.events.map_or(0, |events| events.interests().len());
        for pair in &mut self.card.pairs {
            // In the same order, and for the same ones, as in `wait`.
            let ready = match pair.interest() {
                Some(_) => {
                    waited_for = waited_for.saturating_add(1);
                    self.session.is_ready(waited_for.saturating_sub(1))
                }
                // Without a descriptor, a waker has woken; or nothing has, and it costs little to ask.
                None => pair.backend.as_ref().is_some_and(|backend| backend.fd().is_none()),
            };
            if ready {
                pair.wake();
            }
        }
    }
}
