use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::super::Waker;
use super::mac::MacAddress;
use super::stats::{Counters, NetStats};

/// What can be done with a network card from outside, while a machine uses it. Clones are the same
/// handle.
#[derive(Debug, Clone)]
pub struct NetHandle(pub(super) Arc<State>);

impl NetHandle {
    /// Plugs the cable in or out: the guest is told, and frames are dropped while it is out. It is in
    /// at first.
    pub fn set_link(&self, up: bool) {
        self.0.change(|announced| announced.plugged = up);
    }

    /// Whether the guest sees a link: the cable is in, and there is something at its other end.
    #[must_use]
    pub fn link(&self) -> bool {
        lock(&self.0.announced).link()
    }

    /// The card's address. The driver may have changed it.
    #[must_use]
    pub fn mac(&self) -> MacAddress {
        lock(&self.0.announced).mac
    }

    /// What the card has done so far.
    #[must_use]
    pub fn stats(&self) -> NetStats {
        self.0.counters.snapshot()
    }
}

/// What the worker, the vCPUs that read the configuration and the handles share.
#[derive(Debug)]
pub(super) struct State {
    pub(super) counters: Counters,
    announced: Mutex<Announced>,
    /// The driver was not told yet of what is announced.
    changed: AtomicBool,
    /// As in `announced`, to be asked for each frame.
    link: AtomicBool,
    /// The driver knows of announcements.
    announces: AtomicBool,
    waker: Mutex<Option<Waker>>,
}

/// What the driver reads. It changes together with its generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Announced {
    /// The card's own address, which it has for each new driver.
    own_mac: MacAddress,
    pub(super) mac: MacAddress,
    /// The cable is in.
    pub(super) plugged: bool,
    /// There is something at its other end.
    pub(super) carrier: bool,
    /// The driver should tell the network where it is.
    pub(super) announce: bool,
    pub(super) generation: u32,
}

impl Announced {
    pub(super) fn link(&self) -> bool {
        self.plugged && self.carrier
    }
}

impl State {
    pub(super) fn new(mac: MacAddress) -> Self {
        let announced = Announced {
            own_mac: mac,
            mac,
            plugged: true,
            carrier: true,
            announce: false,
            generation: 0,
        };
        Self {
            counters: Counters::default(),
            announced: Mutex::new(announced),
            changed: AtomicBool::new(false),
            link: AtomicBool::new(true),
            announces: AtomicBool::new(false),
            waker: Mutex::new(None),
        }
    }

    pub(super) fn announced(&self) -> Announced {
        *lock(&self.announced)
    }

    pub(super) fn own_mac(&self) -> MacAddress {
        lock(&self.announced).own_mac
    }

    pub(super) fn set_own_mac(&self, mac: MacAddress) {
        self.set_by_driver(|announced| (announced.own_mac, announced.mac) = (mac, mac));
    }

    /// Says that what the card is plugged into is gone; this happens once to each backend.
    pub(super) fn log_gone(&self, error: &io::Error) {
        let mac = self.own_mac();
        log::warn!("the network of the card {mac} is gone, its guest sees no link: {error}");
    }

    /// Whether the driver is to be told of a change since the last call.
    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn link(&self) -> bool {
        self.link.load(Ordering::Relaxed)
    }

    /// A driver is there; whether it knows of announcements.
    pub(super) fn begin_session(&self, waker: Waker, announces: bool) {
        self.announces.store(announces, Ordering::Relaxed);
        *lock(&self.waker) = Some(waker);
    }

    /// The driver is gone: what it set is as before.
    pub(super) fn end_session(&self) {
        self.announces.store(false, Ordering::Relaxed);
        self.set_by_driver(|announced| {
            (announced.mac, announced.announce) = (announced.own_mac, false);
        });
    }

    /// There is something at the other end of the cable, or not any more.
    pub(super) fn set_carrier(&self, carrier: bool) {
        self.change(|announced| announced.carrier = carrier);
    }

    /// The driver knows of this itself: it is not told.
    pub(super) fn set_by_driver(&self, change: impl FnOnce(&mut Announced)) {
        let mut announced = lock(&self.announced);
        change(&mut announced);
        announced.generation = announced.generation.wrapping_add(1);
    }

    fn change(&self, change: impl FnOnce(&mut Announced)) {
        let mut announced = lock(&self.announced);
        let before = announced.link();
        change(&mut announced);
        let link = announced.link();
        if link == before {
            return;
        }
        // With a link anew, the network may not know where this card is.
        announced.announce = link && self.announces.load(Ordering::Relaxed);
        announced.generation = announced.generation.wrapping_add(1);
        self.link.store(link, Ordering::Relaxed);
        drop(announced);
        self.changed.store(true, Ordering::Release);
        if let Some(waker) = &*lock(&self.waker) {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What they guard is valid after every step, so a panic elsewhere cannot spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
