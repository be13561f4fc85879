//! The card while a driver uses it: its pairs of queues, and what the driver commands.

use std::io;

use super::super::{DeviceError, Session};
use super::control::Commands;
use super::filter::Filter;
use super::offloads::Offloads;
use super::pair::Pair;
use super::state::State;
use super::vhost::{Events, VhostError};

/// All pairs, and what the driver commands.
pub(super) struct Card<'a> {
    pub(super) pairs: Vec<Pair<'a>>,
    /// What the kernel has to tell, if it serves the queues.
    pub(super) events: Option<&'a Events>,
    pub(super) filter: Filter,
    /// What may be left undone in frames that the driver receives.
    pub(super) offloads: Offloads,
    /// What was said of the cable's other end.
    pub(super) carrier: Option<bool>,
    pub(super) state: &'a State,
}

impl Card<'_> {
    pub(super) fn start(&mut self, session: &Session, offloads: Offloads) -> io::Result<()> {
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
    pub(super) fn run_vhost(&mut self, run: bool) -> io::Result<()> {
        let run = run && self.state.link();
        self.pairs.iter_mut().try_for_each(|pair| pair.run_vhost(run))
    }

    /// Passes on what the kernel told before the last wait ended; or, when it is the last time for long, until
    /// now.
    pub(super) fn hear_vhost(&mut self, session: &Session, last: bool) -> Result<(), DeviceError> {
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
    pub(super) fn check_carrier(&mut self) {
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
