//! Random calls of life and death from eight threads over fifty machines: every call returns, every
//! machine ends as the calls allow, nothing is left. `SPARKLER_STRESS_SECONDS` says for how long (20), and
//! `SPARKLER_STRESS_SEED` with which numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)] // A failed unwrap is a failed test.

mod common;

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sparkler::virtio::block::EngineKind;
use sparkler::{ControlError, Outcome, ResetAction, RunningVm, VmState};
use tempfile::NamedTempFile;

use crate::common::disks::{file, open};
use crate::common::{Captured, guest};

const MACHINES: usize = 50;
const THREADS: u64 = 8;
/// One call, on a host where hundreds of threads share two processors.
const PATIENCE: Duration = Duration::from_secs(60);

/// Marsaglia's xorshift: the same numbers for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// What a guest does by itself, and how often that one is chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Guest {
    Halts,
    Spins,
    Exits,
    Resets,
    PowersOff,
    Crashes,
    WaitsForButton,
    UsesDisk,
    Prints,
}

const GUESTS: [(Guest, &str); 9] = [
    (Guest::Halts, "quiet test=halt"),
    (Guest::Spins, "quiet test=hang"),
    (Guest::Exits, "quiet code=7"),
    (Guest::Resets, "quiet end=reset"),
    (Guest::PowersOff, "quiet end=poweroff"),
    (Guest::Crashes, "quiet test=triple"),
    (Guest::WaitsForButton, "quiet test=button end=poweroff"),
    (Guest::UsesDisk, "quiet test=disk requests=300 depth=8 code=7"),
    (Guest::Prints, "test=print bytes=100000 code=7"),
];

struct Machine {
    guest: Guest,
    restarts: bool,
    running: RunningVm,
    stopped: AtomicBool,
    reset: AtomicBool,
    shut_down: AtomicBool,
    _disk: Option<NamedTempFile>,
}

impl Machine {
    fn start(random: &mut Random) -> Self {
        let (guest, cmdline) = GUESTS[random.below(GUESTS.len())];
        let restarts = random.below(2) == 0;
        let action = if restarts { ResetAction::Restart } else { ResetAction::End };
        let mut builder = common::guest(cmdline).on_reset(action);
        builder = builder.vcpus(1 + u32::try_from(random.below(2)).unwrap());
        if random.below(2) == 0 {
            builder = builder.console(Captured::default().console());
        }
        let disk = (guest == Guest::UsesDisk).then(|| file(1 << 20));
        if let Some(disk) = &disk {
            let engine = [EngineKind::Sync, EngineKind::IoUring][random.below(2)];
            builder = builder.disk(open(disk.path(), engine));
        }
        let running = builder.build().unwrap().start().unwrap();
        let (stopped, reset, shut_down) = Default::default();
        Self { guest, restarts, running, stopped, reset, shut_down, _disk: disk }
    }

    /// One call at random. Whatever it answers must be true.
    fn call(&self, random: &mut Random) {
        let handle = self.running.handle();
        let result = match random.below(20) {
            0 => {
                self.stopped.store(true, Ordering::SeqCst);
                handle.stop();
                assert_eq!(handle.state(), VmState::Ended);
                return;
            }
            1..=6 => handle.pause(),
            7..=12 => handle.resume(),
            13 => {
                self.reset.store(true, Ordering::SeqCst);
                handle.reset()
            }
            14 => {
                self.shut_down.store(true, Ordering::SeqCst);
                handle.shutdown()
            }
            _ => {
                let wait = Duration::from_millis(random.below(5) as u64);
                if let Some(outcome) = self.running.wait_timeout(wait).unwrap() {
                    self.check(&outcome);
                }
                return;
            }
        };
        if result.is_err() {
            assert_eq!(result, Err(ControlError::Ended));
            self.check(&self.running.wait().unwrap()); // At once, as it has ended.
        }
    }

    /// That the machine could end like this.
    fn check(&self, outcome: &Outcome) {
        let called = |flag: &AtomicBool| flag.load(Ordering::SeqCst);
        let Self { guest, restarts, .. } = self;
        let allowed = match outcome {
            Outcome::Stopped => called(&self.stopped),
            Outcome::Reset => !restarts && (*guest == Guest::Resets || called(&self.reset)),
            Outcome::PowerOff => {
                *guest == Guest::PowersOff
                    || (*guest == Guest::WaitsForButton && called(&self.shut_down))
            }
            Outcome::Exited(7) => matches!(guest, Guest::Exits | Guest::UsesDisk | Guest::Prints),
            Outcome::Crashed(_) => *guest == Guest::Crashes,
            _ => false,
        };
        assert!(allowed, "{outcome:?} of {guest:?}, restarts: {restarts}");
        assert_eq!(self.running.wait().as_ref(), Ok(outcome), "the same answer again");
    }
}

/// The process's threads, descriptors and KVM's machines.
fn holdings() -> (usize, usize, usize) {
    let count = |folder| fs::read_dir(folder).unwrap().count();
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let vcpus = maps.lines().filter(|line| line.contains("kvm-vcpu")).count();
    (count("/proc/self/task"), count("/proc/self/fd"), vcpus)
}

/// Runs `work` in a thread of its own and fails if it takes longer than `limit`.
fn within(limit: Duration, work: impl FnOnce() + Send + 'static) {
    let (done, end) = channel();
    let thread = thread::spawn(move || {
        work();
        let _ = done.send(());
    });
    if end.recv_timeout(limit) == Err(RecvTimeoutError::Timeout) {
        panic!("a call does not return");
    }
    thread.join().unwrap();
}

fn setting(name: &str, usual: u64) -> u64 {
    std::env::var(name).map_or(usual, |value| value.parse().unwrap())
}

#[test]
#[ignore = "needs /dev/kvm"]
fn random_calls_from_eight_threads_over_fifty_machines() {
    // What a first machine makes the process take once and for all.
    drop(guest("quiet").build().unwrap().start().unwrap());
    let before = holdings();
    let duration = Duration::from_secs(setting("SPARKLER_STRESS_SECONDS", 20));
    let seed = setting("SPARKLER_STRESS_SEED", 0x5eed);
    println!("{duration:?} with SPARKLER_STRESS_SEED={seed}");
    within(duration + PATIENCE, move || stress(duration, seed));

    // A joined thread may stay in the kernel's list for a moment.
    let deadline = Instant::now() + Duration::from_secs(10);
    // The watchdog's own thread has come and gone by then.
    while holdings() != before && Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(holdings(), before);
}

fn stress(duration: Duration, seed: u64) {
    let mut random = Random(seed);
    let start = |random: &mut Random| Mutex::new(Arc::new(Machine::start(random)));
    let machines: Vec<_> = (0..MACHINES).map(|_| start(&mut random)).collect();
    let (calls, replaced) = (AtomicU64::new(0), AtomicU64::new(0));
    let deadline = Instant::now() + duration;
    thread::scope(|scope| {
        for number in 1..=THREADS {
            let (machines, calls, replaced) = (&machines, &calls, &replaced);
            let mut random = Random(seed.wrapping_add(number << 32) | 1);
            scope.spawn(move || {
                while Instant::now() < deadline {
                    let place = &machines[random.below(MACHINES)];
                    let machine = Arc::clone(&place.lock().unwrap());
                    machine.call(&mut random);
                    calls.fetch_add(1, Ordering::Relaxed);
                    // One that has ended makes room, and now and then one that has not: whoever lets go of
                    // it last drops it, while it runs.
                    let ended = machine.running.handle().state() == VmState::Ended;
                    if ended || random.below(100) == 0 {
                        let next = Arc::new(Machine::start(&mut random));
                        *place.lock().unwrap() = next;
                        replaced.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (calls, replaced) = (calls.into_inner(), replaced.into_inner());
    println!("{calls} calls, {replaced} machines replaced");
    assert!(calls > 100 && replaced > 10, "{calls} calls, {replaced} machines replaced");
}
