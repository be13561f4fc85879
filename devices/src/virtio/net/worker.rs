//! The life of a network card between `DRIVER_OK` and reset: queues on one side, backends on the other.

use std::io;
use std::time::Instant;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MQ,
};

use super::super::token_bucket::Limiter;
use super::super::{DeviceError, Queue, Session};
use super::card::Card;
use super::control::Control;
use super::filter::Filter;
use super::offloads::Offloads;
use super::pair::Pair;
use super::receive::Lengths;
use super::state::State;
use super::vhost::{Events, Vhost};
use super::{NetDevice, has};

/// Serves the card until the session ends.
pub(super) fn run(device: &mut NetDevice, session: &mut Session) -> Result<(), DeviceError> {
    let features = session.features();
    let lengths = Lengths { longest: device.longest_frame(), promised: device.promised_frame() };
    let NetDevice { backends, state, send_limiter, receive_limiter, vhost, .. } = device;
    let state: &State = state;
    state.begin_session(session.waker(), has(features, VIRTIO_NET_F_GUEST_ANNOUNCE));
    let mut queues = session.take_queues();
    // Before the pairs: its index may be that of a pair not in use.
    let control = control_index(features, backends.len());
    let control = control.and_then(|index| take(&mut queues, index));
    let control = control.map(|queue| Control::new(queue, features, session)).transpose()?;
    let mut pairs: Vec<_> = backends.iter_mut().map(|backend| Pair::new(backend, state)).collect();
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
        filter: Filter::new(state.own_mac()),
        offloads: Offloads::NONE,
        carrier: None,
        state,
    };
    let worker = Worker { session, card, control, send_limiter, receive_limiter };
    let result = worker.serve(Offloads::receive_negotiated(features));
    state.end_session();
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
        let Card { pairs, filter, .. } = &mut self.card;
        for pair in pairs {
            if pair.active {
                more |= pair.work(self.send_limiter, self.receive_limiter, filter)?;
            } else {
                pair.notify()?; // It could have been active until now.
            }
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
        let until = self.card.pairs.iter().filter_map(Pair::look_at).min();
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
