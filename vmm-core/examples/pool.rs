//! A warm pool: machines that have booted wait, paused, to be handed out, and each that is taken is replaced
//! by a fresh one. `cargo run --release -p sparkler --example pool` prints
//! what that saves.

use std::error::Error;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sparkler::{Console, Kernel, MemorySize, Outcome, RunningVm, Vm};

/// Machines that wait, beside the one that is being made.
const WARM: usize = 4;
const REQUESTS: usize = 40;

/// One that has booted and does what its console tells it. Here, it says again what it is told.
struct Machine {
    running: RunningVm,
    to_guest: PipeWriter,
    from_guest: PipeReader,
}

impl Machine {
    /// A fresh one, that has been heard of.
    fn boot() -> Result<Self, Box<dyn Error + Send + Sync>> {
        let (guest_input, to_guest) = io::pipe()?;
        let (from_guest, guest_output) = io::pipe()?;
        let vm = Vm::builder()
            .memory(MemorySize::mib(128))
            .kernel(Kernel::bytes(sparkler_guest::ELF))
            .cmdline("quiet test=echo")
            .console(Console::pollable(guest_input, guest_output))
            .build()?;
        let mut machine = Self { running: vm.start()?, to_guest, from_guest };
        machine.ask("?")?;
        Ok(machine)
    }

    /// Sends a line's worth and waits for the answer.
    fn ask(&mut self, text: &str) -> io::Result<String> {
        self.to_guest.write_all(text.as_bytes())?;
        let mut answer = vec![0; text.len()];
        self.from_guest.read_exact(&mut answer)?;
        String::from_utf8(answer).map_err(io::Error::other)
    }

    /// Lets it end by itself. One that does not would be stopped when it is dropped.
    fn finish(mut self) -> Result<Outcome, Box<dyn Error + Send + Sync>> {
        self.to_guest.write_all(b"q")?;
        Ok(self.running.wait()?)
    }
}

/// Keeps [`WARM`] machines ready. None is ever used twice.
struct Pool {
    machines: Receiver<Machine>,
    filler: JoinHandle<Result<(), Box<dyn Error + Send + Sync>>>,
}

impl Pool {
    fn new() -> Self {
        let (send, machines) = sync_channel(WARM);
        let filler = thread::spawn(move || {
            loop {
                let machine = Machine::boot()?;
                // It waits without using a processor.
                machine.running.handle().pause()?;
                if send.send(machine).is_err() {
                    return Ok(()); // The pool is gone.
                }
            }
        });
        Self { machines, filler }
    }

    /// A machine that runs.
    fn take(&self) -> Result<Machine, Box<dyn Error + Send + Sync>> {
        let machine = self.machines.recv()?;
        machine.running.handle().resume()?;
        Ok(machine)
    }

    /// Ends it, and says why machines could no longer be made, if so.
    fn close(self) -> Result<(), Box<dyn Error + Send + Sync>> {
        drop(self.machines);
        self.filler.join().unwrap_or_else(|_| Err("the filler panicked".into()))
    }
}

/// How long it takes to have an answer from a machine that somebody has asked for.
fn measure(
    machine: impl Fn() -> Result<Machine, Box<dyn Error + Send + Sync>>,
    pause: Duration,
) -> Result<Vec<Duration>, Box<dyn Error + Send + Sync>> {
    let mut times = Vec::with_capacity(REQUESTS);
    for _ in 0..REQUESTS {
        let begun = Instant::now();
        let mut machine = machine()?;
        let answer = machine.ask("hello")?;
        times.push(begun.elapsed());
        if answer != "hello" || machine.finish()? != Outcome::Exited(0) {
            return Err(format!("the guest answered {answer:?}").into());
        }
        thread::sleep(pause); // Requests come at their own pace.
    }
    times.sort();
    Ok(times)
}

fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let index = sorted.len().saturating_sub(1) * percent / 100;
    sorted.get(index).copied().unwrap_or_default()
}

pub(crate) fn main() -> Result<(), Box<dyn Error + Send + Sync>> {
    let cold = measure(Machine::boot, Duration::ZERO)?;
    let pool = Pool::new();
    let warm = measure(|| pool.take(), Duration::from_millis(20))?;
    pool.close()?;
    for (name, times) in [("made when asked for", cold), ("from the pool", warm)] {
        let [p50, p90, p99] = [50, 90, 99].map(|percent| percentile(&times, percent));
        println!("{name}: ready after {p50:.2?} (p50), {p90:.2?} (p90), {p99:.2?} (p99)");
    }
    Ok(())
}
