//! Sequences of MMIO accesses to a virtio transport, next to a model of its state machine that is
//! written from the table in the documentation: every read, every interrupt, and every start of the
//! device must be as the model says.
//!
//! Operations are mostly steps that a driver takes, right or slightly wrong, so that live devices,
//! frozen queues and resets are reached; the rest are any bytes at any offset.

#![no_main]

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use sparkler_devices::BusDevice;
use sparkler_devices::virtio::mock::MockInterrupt;
use sparkler_devices::virtio::{
    ConfigBytes, ConfigSpace, DeviceError, MmioTransport, Session, VirtioDevice,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

const KIB64: u64 = 64 << 10;
/// RAM: two regions that touch, and one above 4 GiB.
const REGIONS: [(u64, usize); 3] =
    [(0, KIB64 as usize), (KIB64, KIB64 as usize), (4 << 30, KIB64 as usize)];
const RAM: [std::ops::Range<u64>; 2] = [0..2 * KIB64, 4 << 30..(4 << 30) + KIB64];
const SIZES: [u16; 3] = [8, 1024, 1];
const DEVICE_FEATURES: u64 = 0b101 | 1 << 35;
const OFFERED: u64 = DEVICE_FEATURES | 1 << 28 | 1 << 29 | 1 << 32;
const CONFIG: [u8; 6] = *b"config";

static MEMORY: LazyLock<GuestMemoryMmap> = LazyLock::new(|| {
    GuestMemoryMmap::from_ranges(&REGIONS.map(|(start, len)| (GuestAddress(start), len))).unwrap()
});

/// A device that does nothing but live.
struct Idle(Arc<AtomicU32>);

impl VirtioDevice for Idle {
    fn device_type(&self) -> u32 {
        7
    }
    fn features(&self) -> u64 {
        DEVICE_FEATURES
    }
    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }
    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(ConfigBytes::new(CONFIG))
    }
    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        self.0.fetch_add(1, Ordering::SeqCst);
        while session.wait(&[], None)? {}
        Ok(())
    }
}

#[derive(Arbitrary, Debug)]
enum Op {
    Read {
        offset: Offset,
        width: u8,
    },
    Write {
        offset: Offset,
        value: u64,
        width: u8,
    },
    ReadRegister {
        index: u8,
    },
    WriteRegister {
        index: u8,
        value: u32,
    },
    /// The next step of a driver's initialization.
    Step,
    Status {
        value: u8,
    },
    Features {
        flip: Option<u8>,
        beyond: bool,
    },
    Queue {
        select: u8,
        size: u8,
        place: [Place; 3],
        ready: bool,
    },
    Reset,
    /// All of a good driver's initialization, with the queues of a bit mask, up to `FEATURES_OK` and
    /// the queues, or to a live device.
    BringUp {
        queues: u8,
        live: bool,
    },
}

#[derive(Arbitrary, Debug)]
enum Offset {
    Registers(u8),
    Near(u16),
    Any(u64),
}

/// Where a part of a ring is put.
#[derive(Arbitrary, Debug)]
enum Place {
    Low { page: u8 },
    Edge { region: u8, before: u16 },
    Any(u64),
}

impl Place {
    fn address(&self) -> u64 {
        match *self {
            Self::Low { page } => u64::from(page % 30) << 12,
            Self::Edge { region, before } => {
                RAM[usize::from(region) % RAM.len()].end - u64::from(before)
            }
            Self::Any(address) => address,
        }
    }
}

/// The device as the documentation has it.
#[derive(Default)]
struct Model {
    phase: Phase,
    failed: bool,
    needs_reset: bool,
    running: bool,
    accepted: u64,
    beyond: bool,
    select: [u32; 3],
    queues: [Queue; 3],
    interrupts: u64,
    interrupt_status: u32,
    generation: u32,
    starts: u32,
}

/// How far the driver has come.
#[derive(Default, Clone, Copy, PartialEq, PartialOrd)]
enum Phase {
    #[default]
    Reset = 0,
    Acknowledged = 1,
    Driver = 3,
    Features = 11,
    Live = 15,
}

#[derive(Clone, Copy, Default)]
struct Queue {
    size: Option<u32>,
    ready: bool,
    /// Descriptors, available ring, used ring.
    parts: [u64; 3],
}

impl Queue {
    fn is_valid(&self, max: u16) -> bool {
        let size = self.size.unwrap_or(max.into());
        if ![1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024].contains(&size) || size > max.into() {
            return false;
        }
        let size = u64::from(size);
        let layout = [(16, 16 * size), (2, 6 + 2 * size), (4, 6 + 8 * size)];
        self.parts.iter().zip(layout).all(|(&address, (align, len))| {
            let inside = |ram: &std::ops::Range<u64>| {
                address >= ram.start && address.checked_add(len).is_some_and(|end| end <= ram.end)
            };
            address != 0 && address % align == 0 && RAM.iter().any(inside)
        })
    }
}

impl Model {
    fn status(&self) -> u32 {
        self.phase as u32 | u32::from(self.failed) << 7 | u32::from(self.needs_reset) << 6
    }

    fn queue(&mut self) -> Option<(&mut Queue, u16)> {
        let index = self.select[2] as usize;
        Some((self.queues.get_mut(index)?, SIZES[index]))
    }

    fn read(&mut self, offset: u64, width: usize) -> Vec<u8> {
        if offset >= 0x100 {
            let byte = |at| CONFIG.get(usize::try_from(at).ok()?).copied();
            let at = (0..width as u64).map(|index| (offset - 0x100).checked_add(index));
            return at.map(|at| at.and_then(byte).unwrap_or(0)).collect();
        }
        let value = match offset {
            _ if width != 4 => return vec![0; width],
            0x00 => 0x7472_6976,
            0x04 => 2,
            0x08 => 7,
            0x0c => u32::from_le_bytes(*b"SPRK"),
            0x10 => OFFERED.checked_shr(self.select[0].saturating_mul(32)).unwrap_or(0) as u32,
            0x34 => self.queue().map_or(0, |(_, max)| max.into()),
            0x44 => self.queue().is_some_and(|(queue, _)| queue.ready).into(),
            0x60 => self.interrupt_status,
            0x70 => self.status(),
            0xb0 | 0xb4 | 0xb8 | 0xbc => !0,
            0xfc => self.generation,
            _ => 0,
        };
        value.to_le_bytes().to_vec()
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let Ok(data) = <[u8; 4]>::try_from(data) else { return };
        let value = u32::from_le_bytes(data);
        let setting_up = self.phase == Phase::Features && !self.failed;
        match offset {
            0x14 => self.select[0] = value,
            0x24 => self.select[1] = value,
            0x30 => self.select[2] = value,
            0x20 if self.phase == Phase::Driver && !self.failed => match self.select[1] {
                0 => self.accepted = self.accepted >> 32 << 32 | u64::from(value),
                1 => self.accepted = self.accepted << 32 >> 32 | u64::from(value) << 32,
                _ => self.beyond |= value != 0,
            },
            0x64 => self.interrupt_status &= !value,
            0x70 => self.write_status(value),
            0x44 => self.write_ready(value, setting_up),
            _ if setting_up => {
                let Some((queue, _)) = self.queue().filter(|(queue, _)| !queue.ready) else {
                    return;
                };
                let [a, b, c] = &mut queue.parts;
                match offset {
                    0x38 => queue.size = Some(value),
                    0x80 => *a = *a >> 32 << 32 | u64::from(value),
                    0x84 => *a = *a << 32 >> 32 | u64::from(value) << 32,
                    0x90 => *b = *b >> 32 << 32 | u64::from(value),
                    0x94 => *b = *b << 32 >> 32 | u64::from(value) << 32,
                    0xa0 => *c = *c >> 32 << 32 | u64::from(value),
                    0xa4 => *c = *c << 32 >> 32 | u64::from(value) << 32,
                    _ => {}
                }
            }
            _ => {}
        }
    }

    fn write_ready(&mut self, value: u32, setting_up: bool) {
        let live = self.phase == Phase::Live;
        let Some((queue, _)) = self.queue() else { return };
        match value {
            0 | 1 if setting_up => queue.ready = value == 1,
            0 if live && queue.ready => {
                queue.ready = false;
                self.running = false;
            }
            _ => {}
        }
    }

    fn write_status(&mut self, value: u32) {
        if value == 0 {
            let Self { interrupts, generation, starts, .. } = *self;
            *self = Self { interrupts, generation, starts, ..Self::default() };
            return;
        }
        let value = value & !64;
        if value == (self.status() & !64) | 128 && !self.failed {
            self.failed = true;
            self.running = false;
        } else if self.failed {
            // Nothing but a reset.
        } else if self.phase == Phase::Reset && value == 1 {
            self.phase = Phase::Acknowledged;
        } else if self.phase < Phase::Driver && value == 3 {
            self.phase = Phase::Driver;
        } else if self.phase == Phase::Driver && value == 11 {
            let wrong = self.accepted & !OFFERED != 0 || self.beyond;
            if !wrong && self.accepted >> 32 & 1 == 1 {
                self.phase = Phase::Features;
            }
        } else if self.phase == Phase::Features && value == 15 {
            self.phase = Phase::Live;
            let mut ready = self.queues.iter().zip(SIZES).filter(|(queue, _)| queue.ready);
            if ready.all(|(queue, max)| queue.is_valid(max)) {
                self.running = true;
                self.starts += 1;
            } else {
                self.needs_reset = true;
                self.interrupts += 1;
                self.interrupt_status |= 2;
                self.generation += 1;
            }
        }
    }
}

/// Transport and model, which get the same accesses.
struct Pair {
    transport: MmioTransport,
    model: Model,
}

impl Pair {
    fn read(&mut self, offset: u64, width: usize) {
        let mut data = vec![0xa5; width];
        self.transport.read(offset, &mut data);
        assert_eq!(data, self.model.read(offset, width), "{width} bytes at {offset:#x}");
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.transport.write(offset, data);
        self.model.write(offset, data);
    }

    fn set(&mut self, register: u64, value: u32) {
        self.write(register, &value.to_le_bytes());
    }

    fn apply(&mut self, op: &Op) {
        match op {
            Op::Read { offset, width } => self.read(offset.get(), usize::from(width % 17)),
            Op::Write { offset, value, width } => {
                self.write(offset.get(), &value.to_le_bytes()[..usize::from(width % 9)]);
            }
            Op::ReadRegister { index } => self.read(u64::from(index % 64) * 4, 4),
            Op::WriteRegister { index, value } => self.set(u64::from(index % 64) * 4, *value),
            Op::Step => {
                let next = match self.model.phase {
                    Phase::Reset => 1,
                    Phase::Acknowledged => 3,
                    Phase::Driver => 11,
                    Phase::Features | Phase::Live => 15,
                };
                self.set(0x70, next);
            }
            Op::Status { value } => self.set(0x70, (*value).into()),
            Op::Features { flip, beyond } => {
                let features = OFFERED ^ flip.map_or(0, |bit| 1 << (bit % 64));
                for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
                    self.set(0x24, select);
                    self.set(0x20, half);
                }
                if *beyond {
                    self.set(0x24, 2);
                    self.set(0x20, 1);
                }
            }
            Op::Queue { select, size, place, ready } => {
                self.set(0x30, (select % 4).into());
                // Mostly powers of two.
                let size = u32::from(*size);
                self.set(0x38, if size < 0xc0 { 1 << (size % 12) } else { size });
                for (part, register) in place.iter().zip([0x80, 0x90, 0xa0]) {
                    self.set(register, part.address() as u32);
                    self.set(register + 4, (part.address() >> 32) as u32);
                }
                self.set(0x44, u32::from(*ready));
            }
            Op::Reset => self.set(0x70, 0),
            Op::BringUp { queues, live } => {
                let features = Op::Features { flip: None, beyond: false };
                for op in [Op::Reset, Op::Step, Op::Step, features, Op::Step] {
                    self.apply(&op);
                }
                for select in (0..3).filter(|queue| queues >> queue & 1 == 1) {
                    // From page 3 on, three pages each; at most 256 entries fit one.
                    let place = [0, 1, 2].map(|part| Place::Low { page: 3 + 3 * select + part });
                    let size = if select == 2 { 0 } else { 3 };
                    self.apply(&Op::Queue { select, size, place, ready: true });
                }
                if *live {
                    self.apply(&Op::Step);
                }
            }
        }
    }
}

impl Offset {
    fn get(&self) -> u64 {
        match *self {
            Self::Registers(offset) => offset.into(),
            Self::Near(offset) => (offset % 0x1010).into(),
            Self::Any(offset) => offset,
        }
    }
}

fuzz_target!(|ops: Vec<Op>| {
    let (starts, interrupt) = (Arc::new(AtomicU32::new(0)), MockInterrupt::default());
    let device = Box::new(Idle(starts.clone()));
    let transport =
        MmioTransport::new(device, MEMORY.clone(), Box::new(interrupt.clone())).unwrap();
    let mut pair = Pair { transport, model: Model::default() };
    for op in ops.iter().take(200) {
        pair.apply(op);
        for register in [0x44, 0x60, 0x70, 0xfc] {
            pair.read(register, 4);
        }
        assert_eq!(interrupt.count(), pair.model.interrupts);
        if !pair.model.running {
            assert_eq!(starts.load(Ordering::SeqCst), pair.model.starts, "after {op:?}");
        }
    }
    pair.transport.stop();
    assert_eq!(starts.load(Ordering::SeqCst), pair.model.starts);
    assert_eq!(Arc::strong_count(&starts), 2, "one here, one in the device, none in a thread");
});
