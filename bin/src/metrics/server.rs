//! One thread that answers. Whatever clients do, it holds few of them, for a short time, and a bounded number
//! of bytes of each; the machine never waits for it.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sparkler::{RunningVm, Stats};

use super::client::{Answer, REQUEST_MAX, answer};
use super::{Socket, text};
use crate::threads;

/// Clients that are served at the same time. Others wait in the kernel's queue.
const CLIENTS_MAX: usize = 16;
/// One who has said nothing for so long does not speak HTTP.
const SILENCE: Duration = Duration::from_millis(200);
/// From the connection to the last byte taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How old the counters may be that a client gets: so that many questions are not much work.
const FRESH: Duration = Duration::from_millis(100);
/// After a connection that could not be taken: this process has no file descriptor left, for one.
const PAUSE: Duration = Duration::from_millis(100);

/// Answers until it is dropped.
#[derive(Debug)]
pub(crate) struct Server {
    /// Closing it wakes and ends the thread.
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub(crate) fn start(socket: Socket, running: Arc<RunningVm>) -> io::Result<Self> {
        let (stop, stopped) = UnixStream::pair()?;
        let serve = move || {
            let counters = Counters { running, latest: None };
            Service { socket, stopped, clients: Vec::new(), paused_until: None, counters }.run();
        };
        let thread = threads::spawn("metrics", serve)?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop = None;
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

struct Service {
    socket: Socket,
    stopped: UnixStream,
    clients: Vec<Client>,
    paused_until: Option<Instant>,
    counters: Counters,
}

impl Service {
    fn run(mut self) {
        // Without poll there is nothing to be served; the machine runs on.
        while let Ok(Ready { stopped: false, listener, clients }) = self.wait() {
            let now = Instant::now();
            let counters = &mut self.counters;
            let mut ready = clients.into_iter();
            self.clients.retain_mut(|client| {
                let ready = ready.next().unwrap_or(false);
                client.serve(ready, now, counters).unwrap_or(false)
            });
            if listener {
                self.accept(now);
            }
        }
    }

    fn wait(&self) -> io::Result<Ready> {
        let now = Instant::now();
        let listens =
            self.clients.len() < CLIENTS_MAX && self.paused_until.is_none_or(|until| until <= now);
        let listener = if listens { PollFlags::IN } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(&self.stopped, PollFlags::IN),
            PollFd::new(&self.socket.listener, listener),
        ];
        fds.extend(self.clients.iter().map(|client| PollFd::new(&client.stream, client.wants())));
        let deadlines = self.clients.iter().map(Client::deadline);
        let next = deadlines.chain(self.paused_until.filter(|_| !listens)).min();
        let timeout = next.map(|at| {
            let left = at.saturating_duration_since(now);
            Timespec {
                tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
                tv_nsec: left.subsec_nanos().into(),
            }
        });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut ready = fds.iter().map(|fd| !fd.revents().is_empty());
        let stopped = ready.next().unwrap_or(true);
        let listener = ready.next().unwrap_or(false);
        Ok(Ready { stopped, listener, clients: ready.collect() })
    }

    fn accept(&mut self, now: Instant) {
        self.paused_until = None;
        match self.socket.listener.accept() {
            Ok((stream, _)) if stream.set_nonblocking(true).is_ok() => {
                self.clients.push(Client::new(stream, now));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.paused_until = now.checked_add(PAUSE),
        }
    }
}

struct Ready {
    stopped: bool,
    listener: bool,
    clients: Vec<bool>,
}

struct Client {
    stream: UnixStream,
    begun: Instant,
    request: Vec<u8>,
    /// What is still to be sent, once that is known.
    answer: Option<Vec<u8>>,
    sent: usize,
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> Self {
        Self { stream, begun: now, request: Vec::new(), answer: None, sent: 0 }
    }

    fn wants(&self) -> PollFlags {
        if self.answer.is_some() { PollFlags::OUT } else { PollFlags::IN }
    }

    fn deadline(&self) -> Instant {
        let silent = self.answer.is_none() && self.request.is_empty();
        self.begun.checked_add(if silent { SILENCE } else { PATIENCE }).unwrap_or(self.begun)
    }

    /// Goes on with what can be done now. False: it is over.
    fn serve(&mut self, ready: bool, now: Instant, counters: &mut Counters) -> io::Result<bool> {
        let late = now >= self.deadline();
        if self.answer.is_none() {
            let ended = ready && self.receive()?;
            let silent = late && self.request.is_empty();
            match answer(&self.request, ended || silent) {
                Some(answer) => self.answer = Some(counters.bytes(answer)),
                None => return Ok(!late),
            }
        } else if late {
            return Ok(false);
        }
        self.send()
    }

    /// Takes what the client has sent. True: there will be no more.
    fn receive(&mut self) -> io::Result<bool> {
        let mut chunk = [0; REQUEST_MAX];
        let room = REQUEST_MAX.saturating_sub(self.request.len());
        match self.stream.read(chunk.get_mut(..room).unwrap_or_default()) {
            Ok(count) => {
                self.request.extend(chunk.iter().take(count));
                Ok(count == 0)
            }
            Err(error) if again(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Sends what the client takes. False: it has all.
    fn send(&mut self) -> io::Result<bool> {
        let answer = self.answer.as_deref().unwrap_or_default();
        while let Some(rest) = answer.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => return Ok(false),
                Ok(count) => self.sent = self.sent.saturating_add(count),
                Err(error) if again(&error) => return Ok(true),
                Err(error) => return Err(error),
            }
        }
        self.stream.shutdown(Shutdown::Write)?;
        // What is left unread would make an error of the end.
        let _ = self.stream.read(&mut [0; REQUEST_MAX]);
        Ok(false)
    }
}

fn again(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

struct Counters {
    running: Arc<RunningVm>,
    latest: Option<(Instant, Stats)>,
}

impl Counters {
    fn bytes(&mut self, answer: Answer) -> Vec<u8> {
        let fresh = self.latest.take().filter(|(at, _)| at.elapsed() < FRESH);
        let (at, stats) = fresh.unwrap_or_else(|| (Instant::now(), self.running.stats()));
        let bytes =
            answer.bytes(|| text::to_prometheus(&stats), || format!("{}\n", text::to_json(&stats)));
        self.latest = Some((at, stats));
        bytes
    }
}
