//! A network in one process: a learning switch, and two machines on it that exchange frames through it.
//! `cargo run --release -p sparkler --example switch` prints what each of them saw. A number behind it, `-- 1024`,
//! is how many MiB go each way, in place of 2,000 frames of all sizes. The machines check every byte.

use std::collections::{HashMap, VecDeque};
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sparkler::virtio::Waker;
use sparkler::virtio::net::{BackendError, Frame, FrameHeader, Net, NetBackend, Room};
use sparkler::{Console, Kernel, MemorySize, Outcome, RunningVm, Vm};

const FRAMES: u64 = 2_000;
/// The largest frame of an Ethernet without larger ones.
const LARGE: u64 = 1514;

/// What a machine may leave unread before the switch drops further frames for it.
const MOST_BYTES: usize = 4 << 20;

/// A switch. Clones are the same one.
#[derive(Clone, Default)]
struct Switch(Arc<Mutex<Ports>>);

#[derive(Default)]
struct Ports {
    ports: Vec<Waiting>,
    /// At which port an address was seen last.
    addresses: HashMap<[u8; 6], usize>,
    forwarded: u64,
    dropped: u64,
}

/// What a port's machine has not read yet.
#[derive(Default)]
struct Waiting {
    frames: VecDeque<Arc<[u8]>>,
    bytes: usize,
    waker: Option<Waker>,
}

/// Where a card is plugged in.
struct Port {
    switch: Switch,
    index: usize,
    /// Ports that got frames since the last flush.
    touched: Vec<usize>,
}

impl Switch {
    /// A card on a port of its own.
    fn plug(&self) -> Net {
        let mut ports = self.lock();
        let index = ports.ports.len();
        ports.ports.push(Waiting::default());
        Net::backend(Port { switch: self.clone(), index, touched: Vec::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Ports> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ports {
    /// Sends a frame that came from the port `from` where it belongs; the ports it went to.
    fn forward(&mut self, from: usize, frame: Arc<[u8]>, touched: &mut Vec<usize>) {
        let Some((to, rest)) = frame.split_first_chunk::<6>() else { return };
        let Some((source, _)) = rest.split_first_chunk::<6>() else { return };
        // An address of a group is nobody's. (A guest can claim any other: what is learned is bounded.)
        if source[0] & 1 == 0
            && (self.addresses.len() < 1024 || self.addresses.contains_key(source))
        {
            self.addresses.insert(*source, from);
        }
        let known = self.addresses.get(to).copied();
        for (index, port) in self.ports.iter_mut().enumerate() {
            if index == from || known.is_some_and(|known| known != index) {
                continue;
            }
            if port.bytes + frame.len() > MOST_BYTES {
                self.dropped += 1;
                continue;
            }
            port.bytes += frame.len();
            port.frames.push_back(Arc::clone(&frame));
            self.forwarded += 1;
            if !touched.contains(&index) {
                touched.push(index);
            }
        }
    }
}

impl NetBackend for Port {
    fn start(&mut self, waker: Waker) -> io::Result<()> {
        if let Some(port) = self.switch.lock().ports.get_mut(self.index) {
            port.waker = Some(waker);
        }
        Ok(())
    }

    fn send(&mut self, frame: &Frame<'_>) -> Result<(), BackendError> {
        // From here on it is the switch's own: its machine cannot change it any more.
        let frame = frame.to_vec()?.into();
        self.switch.lock().forward(self.index, frame, &mut self.touched);
        Ok(())
    }

    fn receive(&mut self, room: &mut Room<'_>) -> Result<(), BackendError> {
        let frame = {
            let mut ports = self.switch.lock();
            let port = ports.ports.get_mut(self.index).ok_or(BackendError::WouldBlock)?;
            let frame = port.frames.pop_front().ok_or(BackendError::WouldBlock)?;
            port.bytes -= frame.len();
            frame
        };
        room.put(FrameHeader::default(), &frame)
    }

    /// One wake for many frames.
    fn flush(&mut self) -> Result<(), BackendError> {
        let ports = self.switch.lock();
        for index in self.touched.drain(..) {
            if let Some(waker) = ports.ports.get(index).and_then(|port| port.waker.as_ref()) {
                waker.wake();
            }
        }
        Ok(())
    }
}

fn start(net: Net, role: &str, amount: &str) -> Result<RunningVm, Box<dyn Error>> {
    let vm = Vm::builder()
        .memory(MemorySize::mib(128))
        .kernel(Kernel::bytes(sparkler_guest::ELF))
        .cmdline(format!("quiet test=net role={role} {amount}"))
        .console(Console::output(io::stdout()))
        .net(net)
        .build()?;
    Ok(vm.start()?)
}

fn main() -> Result<(), Box<dyn Error>> {
    let mib = std::env::args().nth(1).map(|mib| mib.parse()).transpose()?;
    run(mib)
}

/// Sends so many MiB each way.
pub(crate) fn run(mib: Option<u32>) -> Result<(), Box<dyn Error>> {
    let amount = match mib {
        Some(mib) => {
            format!("frames={} size={LARGE}", (u64::from(mib) << 20).div_ceil(LARGE))
        }
        None => format!("frames={FRAMES}"),
    };
    let switch = Switch::default();
    let (one, other) = (switch.plug(), switch.plug());
    let handles = [one.handle(), other.handle()];
    // Each frame comes back before its sender sends many more: nothing needs to be dropped.
    let answering = start(other, "pong", &amount)?;
    let asking = start(one, "ping window=32", &amount)?;
    for machine in [asking, answering] {
        match machine.wait()? {
            Outcome::Exited(0) => {}
            outcome => return Err(format!("a machine ended otherwise: {outcome:?}").into()),
        }
    }
    for handle in handles {
        let (mac, stats) = (handle.mac(), handle.stats());
        let (sent, received) = (stats.sent_frames, stats.received_frames);
        println!("{mac}: sent {sent}, received {received}, {} bytes", stats.received_bytes);
    }
    let ports = switch.lock();
    let (forwarded, dropped) = (ports.forwarded, ports.dropped);
    println!(
        "the switch: {} addresses, {forwarded} forwarded, {dropped} dropped",
        ports.addresses.len()
    );
    Ok(())
}
