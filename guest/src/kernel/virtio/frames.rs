//! `test=net`: Ethernet frames, every byte of which is checked on arrival.
//!
//! | bytes | what |
//! |---|---|
//! | 0 to 13 | to, from, the type 0x88b5, which is for local experiments |
//! | 14, 15 | length of the frame, little-endian |
//! | 16 to 23 | its number, from 0, little-endian |
//! | 24 to 31 | checksum of what follows and the number |
//! | from 32 | pseudo-random words |

use super::content::Random;
use super::dma::{Arena, Memory};
use super::mischief;
use super::net::Net;
use crate::bootinfo::BootInfo;
use crate::clock::{self, Deadline};
use crate::cmdline::Cmdline;
use crate::exit_code::{BAD_COMMAND_LINE, NET_CONTENT, NET_LOST, NET_ORDER};
use crate::{TestResult, uart};

pub(crate) const TYPE: u64 = 12;
const DATA_TYPE: u16 = 0x88b5;
const LENGTH: u64 = 14;
const NUMBER: u64 = 16;
const CHECKSUM: u64 = 24;
const CONTENT: u64 = 32;

pub(crate) const LEAST: u64 = 60;
const USUAL_MOST: u64 = 1514;
const DEFAULT_FRAMES: u64 = 1000;
const EVERYBODY: [u8; 6] = [0xff; 6];

struct Job {
    /// How many frames this side sends by itself, and how many it waits for.
    send: u64,
    expect: u64,
    /// Frames that may be without an answer.
    window: u64,
    /// Answers each frame.
    echo: bool,
    /// It cannot, before something was sent.
    blocked: bool,
    /// 0: each frame has another size.
    size: u64,
    /// Neither writes content nor looks at it.
    blind: bool,
    /// A gap in the numbers is no error.
    lossy: bool,
    mac: [u8; 6],
    sent: u64,
    received: u64,
    /// The number that comes next.
    next: u64,
    lost: u64,
    foreign: u64,
    bytes: u64,
}

pub(crate) fn run(boot: &BootInfo, cmdline: &Cmdline) -> TestResult {
    let mut arena = Arena::new(boot)?;
    let size = cmdline.number(b"size")?.unwrap_or(0);
    let mut net = Net::open(cmdline, &mut arena, size.max(USUAL_MOST))?;
    let mut job = Job::new(cmdline, &net, size)?;
    if let Some(case) = cmdline.value(b"case") {
        mischief::run(case, cmdline, &mut net, &mut arena)?;
    }
    net.start()?;
    if let Some(milliseconds) = cmdline.number(b"late")? {
        Deadline::after(milliseconds).wait_until(|| false);
    }
    net.refill();
    net.kick();
    let start = clock::now();
    let result = job.run(&mut net);
    let ticks = clock::now() - start;
    for (key, value) in [
        (&b"sent"[..], job.sent),
        (b"received", job.received),
        (b"lost", job.lost),
        (b"foreign", job.foreign),
        (b"bytes", job.bytes),
        (b"notifications", net.notifications),
        (b"interrupts", net.waiter.interrupts()),
    ] {
        uart::key_value(key, value);
    }
    let khz = clock::tsc_khz(cmdline)?;
    uart::key_value(b"microseconds", (ticks * 1000).checked_div(khz).unwrap_or(0));
    let done = job.sent.max(job.received);
    uart::key_value(b"frames_per_second", (done * khz * 1000).checked_div(ticks).unwrap_or(0));
    result
}

impl Job {
    fn new(cmdline: &Cmdline, net: &Net, size: u64) -> Result<Self, u8> {
        let frames = cmdline.number(b"frames")?.unwrap_or(DEFAULT_FRAMES);
        let window = cmdline.number(b"window")?.unwrap_or(1);
        let (send, expect, window, echo) = match cmdline.value(b"role").unwrap_or(b"exchange") {
            b"ping" => (frames, frames, window, false),
            b"pong" => (0, frames, 0, true),
            b"flood" => (frames, 0, u64::MAX, false),
            b"sink" => (0, frames, 0, false),
            b"exchange" => (frames, frames, u64::MAX, false),
            _ => return Err(BAD_COMMAND_LINE),
        };
        if window == 0 && send > 0 || size > 0 && size < LEAST {
            return Err(BAD_COMMAND_LINE);
        }
        Ok(Self {
            send,
            expect,
            window,
            echo,
            blocked: false,
            size,
            blind: cmdline.has(b"blind"),
            lossy: cmdline.has(b"lossy"),
            mac: net.mac(),
            sent: 0,
            received: 0,
            next: 0,
            lost: 0,
            foreign: 0,
            bytes: 0,
        })
    }

    fn run(&mut self, net: &mut Net) -> TestResult {
        while self.sent < self.send || self.expects_more() || !net.all_sent()? {
            let progress = self.fill(net)? | self.drain(net)?;
            net.kick();
            if !progress {
                // What is not looked at now is not to be waited for.
                net.wait(self.expects_more() && !self.blocked)?;
            }
        }
        if self.lost > 0 && !self.lossy { Err(NET_LOST) } else { Ok(()) }
    }

    fn expects_more(&self) -> bool {
        self.received + self.lost < self.expect
    }

    /// Sends as much as there is room for; returns whether there was any.
    fn fill(&mut self, net: &mut Net) -> Result<bool, u8> {
        let before = self.sent;
        while self.sent < self.send && self.sent.saturating_sub(self.received) < self.window {
            let Some((slot, frame)) = net.frame()? else { break };
            let length = self.length_of(self.sent).min(frame.length());
            self.write(frame.part(0, length));
            net.send(slot, length);
            self.sent += 1;
        }
        Ok(self.sent != before)
    }

    /// Looks at all that was received; returns whether there was any.
    fn drain(&mut self, net: &mut Net) -> Result<bool, u8> {
        let mut any = false;
        while self.expects_more() {
            // What is received is answered at once.
            let room = if self.echo { net.frame()? } else { None };
            self.blocked = self.echo && room.is_none();
            if self.blocked {
                break;
            }
            let received = net.receive()?;
            any |= received.is_some();
            match (received, room) {
                (Some(frame), room) if self.accept(frame)? => {
                    if let Some((slot, answer)) = room {
                        answer.copy_from(0, frame);
                        address(answer, [6, 7, 8, 9, 10, 11].map(|at| frame.read(at)), self.mac);
                        net.send(slot, frame.length());
                        self.sent += 1;
                    }
                }
                (received, Some((slot, _))) => {
                    net.put_back(slot);
                    if received.is_none() {
                        break;
                    }
                }
                (None, None) => break,
                (Some(_), None) => {}
            }
        }
        Ok(any)
    }

    /// Whether a frame is one of ours; what is wrong with it if it is wrong.
    fn accept(&mut self, frame: Memory) -> Result<bool, u8> {
        if frame.length() < LEAST || frame.read::<u16>(TYPE) != DATA_TYPE.to_be() {
            self.foreign += 1;
            return Ok(false);
        }
        let number = frame.read::<u64>(NUMBER);
        let right = u64::from(frame.read::<u16>(LENGTH)) == frame.length()
            && (self.blind || frame.read::<u64>(CHECKSUM) == checksum(frame));
        if !right {
            uart::key_value(b"wrong_frame", number);
            uart::key_value(b"length", frame.length());
            uart::key_value(b"instead_of", u64::from(frame.read::<u16>(LENGTH)));
            return Err(NET_CONTENT);
        }
        if number < self.next {
            uart::key_value(b"late_frame", number);
            uart::key_value(b"instead_of", self.next);
            return Err(NET_ORDER);
        }
        self.lost += number - self.next;
        self.next = number + 1;
        self.received += 1;
        self.bytes += frame.length();
        Ok(true)
    }

    /// The next frame to be sent, for everybody.
    fn write(&self, frame: Memory) {
        address(frame, EVERYBODY, self.mac);
        frame.write(TYPE, DATA_TYPE.to_be());
        frame.write(LENGTH, frame.length() as u16);
        frame.write(NUMBER, self.sent);
        if self.blind {
            return;
        }
        let mut random = Random::new(self.sent);
        let words = (frame.length() - CONTENT) / 8;
        (0..words).for_each(|word| frame.write(CONTENT + 8 * word, random.next()));
        for at in CONTENT + 8 * words..frame.length() {
            frame.write(at, random.next() as u8);
        }
        frame.write(CHECKSUM, checksum(frame));
    }

    fn length_of(&self, number: u64) -> u64 {
        match self.size {
            0 => LEAST + Random::new(number).below(USUAL_MOST - LEAST + 1),
            size => size,
        }
    }
}

fn address(frame: Memory, to: [u8; 6], from: [u8; 6]) {
    for (at, byte) in (0..).zip(to.into_iter().chain(from)) {
        frame.write(at, byte);
    }
}

/// FNV-1a over the number and the words of the content, and then over the bytes that are left.
fn checksum(frame: Memory) -> u64 {
    let step = |sum: u64, word: u64| (sum ^ word).wrapping_mul(0x100_0000_01b3);
    let words = (frame.length() - CONTENT) / 8;
    let sum = step(0xcbf2_9ce4_8422_2325, frame.read(NUMBER));
    let sum = (0..words).fold(sum, |sum, word| step(sum, frame.read(CONTENT + 8 * word)));
    let rest = CONTENT + 8 * words..frame.length();
    rest.fold(sum, |sum, at| step(sum, u64::from(frame.read::<u8>(at))))
}
