//! How the threads of a machine agree, under many schedules: the monitor's own `control.rs`, compiled here
//! with locks, threads and kicks whose order a checker ([`shuttle`]) decides. It reports a deadlock, so
//! that a lost kick or a lost wake-up is found without waiting; everything else is an assertion.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.
#![allow(dead_code, unreachable_pub)] // What the model does not use of the file.

#[path = "../src/control.rs"]
mod control;

use std::time::Duration;

use shuttle::rand::{Rng, thread_rng};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicUsize, Ordering};
use shuttle::thread::{self, JoinHandle};

use control::Control;

/// The locks of the file under test.
mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, Ordering};
    pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub(crate) use std::sync::PoisonError;
}

/// Kicks: a signal that stays pending until it is consumed, and lets the guest be left and not be entered.
mod sys {
    pub(crate) mod signal {
        use std::io;

        use shuttle::sync::{Condvar, Mutex};

        #[derive(Default)]
        struct Pending(Mutex<bool>, Condvar);

        shuttle::thread_local! {
            static PENDING: &'static Pending = Box::leak(Box::default()); // Ids are copied.
        }

        #[derive(Clone, Copy)]
        pub(crate) struct ThreadId(&'static Pending);

        impl ThreadId {
            pub(crate) fn current() -> Self {
                Self(PENDING.with(|pending| *pending))
            }

            /// As the real one, it must not be called once the thread is gone; the model does not mind.
            pub(crate) unsafe fn kick(self) {
                *self.0.0.lock().unwrap() = true;
                self.0.1.notify_all();
            }
        }

        impl PartialEq for ThreadId {
            fn eq(&self, other: &Self) -> bool {
                std::ptr::eq(self.0, other.0)
            }
        }

        impl std::fmt::Debug for ThreadId {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                Ok(())
            }
        }

        pub(crate) fn block_signals() -> io::Result<()> {
            Ok(())
        }

        /// `KVM_RUN` of a guest that runs for good: it returns when there is a kick, which is consumed.
        pub(crate) fn run_guest() {
            let Pending(pending, kicked) = ThreadId::current().0;
            let mut pending = pending.lock().unwrap();
            while !*pending {
                pending = kicked.wait(pending).unwrap();
            }
            *pending = false;
        }
    }

    pub(crate) mod wake {
        #[derive(Debug)]
        pub(crate) struct Wake;

        impl Wake {
            pub(crate) fn new() -> std::io::Result<Self> {
                Ok(Self)
            }
            pub(crate) fn wake(&self) {}
        }
    }
}

mod timeline {
    #[derive(Debug)]
    pub(crate) struct Recorder;

    impl Recorder {
        pub(crate) fn record(&self, _: Milestone) {}
    }

    pub(crate) enum Milestone {
        Ended,
    }
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Outcome {
    Stopped,
    Exited,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum RunError {
    Panicked { thread: String, message: String },
    Restart,
}

#[derive(Debug, PartialEq)]
pub(crate) enum ControlError {
    Ended,
}

#[derive(Debug, PartialEq)]
pub(crate) enum VmState {
    Running,
    Paused,
    Ended,
}

const VCPUS: u8 = 2;

/// A machine in the model: its vCPUs count themselves while they are in the guest.
struct Machine {
    control: Control,
    in_guest: AtomicUsize,
    restarts: AtomicUsize,
    /// Whether it can start anew.
    restartable: bool,
}

impl Machine {
    fn new(restartable: bool) -> Arc<Self> {
        let control = Control::new(VCPUS, timeline::Recorder).unwrap();
        let (in_guest, restarts) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { control, in_guest, restarts, restartable })
    }

    /// Starts the threads of the vCPUs, with what each does of its own accord.
    fn start(self: &Arc<Self>, acts: [&'static [Act]; 2]) -> Vec<JoinHandle<()>> {
        let start = |(index, acts)| {
            let machine = Arc::clone(self);
            thread::spawn(move || machine.vcpu(index, acts))
        };
        (0..VCPUS).zip(acts).map(start).collect()
    }

    /// As `vcpu::run`, with a guest that does `acts` at random before it runs for good.
    fn vcpu(&self, index: u8, acts: &[Act]) {
        let _thread = self.control.enter_vcpu_thread(index).unwrap();
        let mut acts = acts.iter();
        loop {
            while !self.control.is_wanted() {
                self.in_guest.fetch_add(1, Ordering::SeqCst);
                let act = acts.next();
                if act.is_none() {
                    sys::signal::run_guest();
                } else {
                    thread::yield_now();
                }
                self.in_guest.fetch_sub(1, Ordering::SeqCst);
                match act {
                    Some(Act::Reset) => self.control.request_reset(),
                    Some(Act::Exit) => drop(self.control.end(Ok(Outcome::Exited))),
                    None => {}
                }
            }
            let restart = || {
                self.assert_out();
                thread::yield_now();
                self.assert_out();
                if !self.restartable {
                    return Err(RunError::Restart);
                }
                self.restarts.fetch_add(1, Ordering::SeqCst);
                Ok(())
            };
            if !self.control.park(restart) {
                return;
            }
        }
    }

    /// No vCPU is in the guest.
    fn assert_out(&self) {
        assert_eq!(self.in_guest.load(Ordering::SeqCst), 0);
    }

    /// What a `VmHandle` does for pause, with a look at whether it holds.
    fn pause(&self) {
        let _turn = self.control.turn();
        if self.control.pause() == Ok(()) {
            self.assert_out();
            thread::yield_now();
            // Whoever resumes it waits for the turn.
            self.assert_out();
        }
    }

    fn resume(&self) {
        let _turn = self.control.turn();
        let _ = self.control.resume();
    }

    fn reset(&self) {
        let _turn = self.control.turn();
        let before = self.restarts.load(Ordering::SeqCst);
        if self.control.reset() == Ok(()) {
            assert!(self.restarts.load(Ordering::SeqCst) > before);
        }
    }
}

/// What somebody does to a machine.
type Call = Box<dyn FnOnce(&Machine) + Send>;

#[derive(Clone, Copy)]
enum Act {
    Reset,
    Exit,
}

/// Runs the vCPUs with what each does of its own accord, and the `callers`; then stops the machine. All
/// threads must come back, and all waits agree.
fn life(acts: [&'static [Act]; 2], callers: Vec<Call>) {
    let machine = Machine::new(true);
    let threads = machine.start(acts);
    let waiter = {
        let machine = Arc::clone(&machine);
        thread::spawn(move || machine.control.wait())
    };
    let callers: Vec<_> = callers
        .into_iter()
        .map(|call| {
            let machine = Arc::clone(&machine);
            thread::spawn(move || call(&machine))
        })
        .collect();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    machine.control.end(Ok(Outcome::Stopped));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let end = machine.control.wait();
    assert_eq!(waiter.join().unwrap(), end);
    machine.assert_out();
    assert_eq!(machine.control.state(), VmState::Ended);
    let exits = acts.concat().iter().any(|act| matches!(act, Act::Exit));
    assert!(end == Ok(Outcome::Stopped) || exits, "{end:?}");
}

/// Schedules of each kind for each test, unless `SPARKLER_SCHEDULES` says how many.
const SCHEDULES: usize = 500;

/// Tries out schedules: at random, and such that need few changes of thread at the wrong place.
fn check(model: impl Fn() + Send + Sync + Clone + 'static) {
    let schedules = std::env::var("SPARKLER_SCHEDULES");
    let schedules = schedules.map_or(SCHEDULES, |schedules| schedules.parse().unwrap());
    shuttle::check_random(model.clone(), schedules);
    shuttle::check_pct(model, schedules, 3);
}

#[test]
fn a_stop_reaches_vcpus_that_run_for_good() {
    check(|| life([&[], &[]], vec![]));
}

#[test]
fn pause_resume_and_stop_in_any_order() {
    check(|| {
        life(
            [&[], &[]],
            vec![
                Box::new(|machine| {
                    machine.pause();
                    machine.resume();
                }),
                Box::new(|machine| machine.pause()),
                Box::new(|machine| {
                    if thread_rng().gen_bool(0.5) {
                        machine.control.end(Ok(Outcome::Stopped));
                    }
                }),
            ],
        );
    });
}

#[test]
fn a_guest_that_resets_or_exits_while_it_is_paused_and_resumed() {
    check(|| {
        life(
            [&[Act::Reset, Act::Exit], &[Act::Reset]],
            vec![
                Box::new(|machine| {
                    machine.pause();
                    machine.resume();
                }),
                Box::new(Machine::reset),
            ],
        );
    });
}

#[test]
fn resets_by_the_host_of_a_running_and_of_a_paused_machine() {
    check(|| {
        life(
            [&[], &[]],
            vec![
                Box::new(|machine| {
                    machine.pause();
                    machine.reset();
                    machine.resume();
                }),
                Box::new(Machine::reset),
            ],
        );
    });
}

#[test]
fn a_restart_that_fails_ends_the_machine_for_everybody() {
    check(|| {
        let machine = Machine::new(false);
        let threads = machine.start([&[], &[Act::Reset]]);
        assert_eq!(machine.control.reset(), Err(ControlError::Ended));
        assert_eq!(machine.control.pause(), Err(ControlError::Ended));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(machine.control.wait_timeout(Duration::ZERO), Some(Err(RunError::Restart)));
    });
}

/// A guest's own reset, which ends at any time meanwhile, is not taken for the host's.
#[test]
fn nothing_is_left_of_a_reset_that_has_returned() {
    check(|| {
        let machine = Machine::new(true);
        let threads = machine.start([&[], &[]]);
        machine.control.request_reset();
        assert_eq!(machine.control.reset(), Ok(()));
        assert!(!machine.control.is_wanted());
        machine.control.end(Ok(Outcome::Stopped));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}
