//! The control queue (virtio 1.2, 5.1.6.5): commands of the driver.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;

use virtio_bindings::bindings::virtio_net as net;

use super::super::{Chain, DeviceError, Interest, Queue, Session};
use super::filter::{Address, Filter, MOST_ADDRESSES, Table};
use super::has;
use super::mac::MacAddress;
use super::offloads::Offloads;
use super::state::State;
use super::stats::count;

const OK: u8 = 0;
const ERR: u8 = 1;
/// How many commands are carried out before the other queues have their turn.
const BATCH: usize = 16;

/// What a command changes.
pub(super) trait Commands {
    fn filter(&mut self) -> &mut Filter;

    /// The driver uses so many pairs of queues from now on. False: it cannot.
    fn set_pairs(&mut self, pairs: u16) -> bool;

    /// What may be left undone in frames that the driver receives. False: it cannot be so.
    fn set_receive_offloads(&mut self, offloads: Offloads) -> bool;
}

/// The control queue, and what was negotiated.
#[derive(Debug)]
pub(super) struct Control {
    queue: Queue,
    features: u64,
    /// What the driver notifies by, an eventfd, if not by that which ends every wait: a driver of one pair has
    /// this queue where others have one that the kernel serves.
    kick: Option<File>,
}

impl Control {
    pub(super) fn new(queue: Queue, features: u64, session: &Session) -> io::Result<Self> {
        let kick = session.kick(queue.index()).map(|kick| kick.try_clone_to_owned());
        Ok(Self { queue, features, kick: kick.transpose()?.map(File::from) })
    }

    /// What else must end a wait.
    pub(super) fn interest(&self) -> Option<Interest<'_>> {
        self.kick.as_ref().map(|kick| Interest::read(kick.as_fd()))
    }

    /// Whether the driver has given a command meanwhile; it will notify of the next.
    pub(super) fn more_came(&mut self) -> Result<bool, DeviceError> {
        Ok(self.queue.enable_notifications()?)
    }

    /// Carries out what the driver has commanded. Whether there was anything.
    pub(super) fn work(
        &mut self,
        commands: &mut dyn Commands,
        state: &State,
    ) -> Result<bool, DeviceError> {
        if let Some(kick) = &mut self.kick {
            let _ = kick.read(&mut [0; 8]); // Fails if there is none.
        }
        for done in 0..BATCH {
            let Some(chain) = self.queue.pop()? else { return Ok(done > 0) };
            let done =
                Command { chain: &chain, features: self.features, state }.carry_out(commands);
            let answer = if done.is_some() { OK } else { ERR };
            if done.is_none() {
                count(&state.counters.refused_commands, 1);
            }
            // Without room for the answer there is none.
            let written = chain.writable_len().min(1);
            if written > 0 {
                chain.write_at(0, &[answer])?;
            }
            self.queue.push(chain, written)?;
            self.queue.notify()?;
        }
        Ok(true)
    }
}

struct Command<'a> {
    chain: &'a Chain,
    features: u64,
    state: &'a State,
}

impl Command<'_> {
    /// `None` if it is not a command that was negotiated, or says what cannot be.
    fn carry_out(&self, commands: &mut dyn Commands) -> Option<()> {
        let [class, command] = self.bytes(0)?;
        match u32::from(class) {
            net::VIRTIO_NET_CTRL_RX => self.mode(command, commands.filter()),
            net::VIRTIO_NET_CTRL_MAC => self.mac(command, commands.filter()),
            net::VIRTIO_NET_CTRL_ANNOUNCE => self.announced(command),
            net::VIRTIO_NET_CTRL_MQ => self.pairs(command, commands),
            net::VIRTIO_NET_CTRL_GUEST_OFFLOADS => self.offloads(command, commands),
            _ => None,
        }
    }

    fn mode(&self, command: u8, filter: &mut Filter) -> Option<()> {
        let command = u32::from(command);
        let extra = command > net::VIRTIO_NET_CTRL_RX_ALLMULTI;
        self.needs(net::VIRTIO_NET_F_CTRL_RX)?;
        if extra {
            self.needs(net::VIRTIO_NET_F_CTRL_RX_EXTRA)?;
        }
        let on = match self.all()? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let mode = match command {
            net::VIRTIO_NET_CTRL_RX_PROMISC => &mut filter.promiscuous,
            net::VIRTIO_NET_CTRL_RX_ALLMULTI => &mut filter.all_multicast,
            net::VIRTIO_NET_CTRL_RX_ALLUNI => &mut filter.all_unicast,
            net::VIRTIO_NET_CTRL_RX_NOMULTI => &mut filter.no_multicast,
            net::VIRTIO_NET_CTRL_RX_NOUNI => &mut filter.no_unicast,
            net::VIRTIO_NET_CTRL_RX_NOBCAST => &mut filter.no_broadcast,
            _ => return None,
        };
        *mode = on;
        Some(())
    }

    fn mac(&self, command: u8, filter: &mut Filter) -> Option<()> {
        match u32::from(command) {
            net::VIRTIO_NET_CTRL_MAC_ADDR_SET => {
                self.needs(net::VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mac = MacAddress::new(self.all()?).ok()?;
                filter.set_mac(mac);
                self.state.set_by_driver(|announced| announced.mac = mac);
                Some(())
            }
            net::VIRTIO_NET_CTRL_MAC_TABLE_SET => {
                self.needs(net::VIRTIO_NET_F_CTRL_RX)?;
                let (unicast, next) = self.table(2)?;
                let (multicast, end) = self.table(next)?;
                if end != self.chain.readable_len() {
                    return None;
                }
                (filter.unicast, filter.multicast) = (unicast, multicast);
                Some(())
            }
            _ => None,
        }
    }

    /// The table of addresses at `offset`, and where it ends.
    fn table(&self, offset: usize) -> Option<(Table, usize)> {
        let entries = usize::try_from(u32::from_le_bytes(self.bytes(offset)?)).ok()?;
        let start = offset.checked_add(4)?;
        let end = start.checked_add(entries.checked_mul(size_of::<Address>())?)?;
        if end > self.chain.readable_len() {
            return None;
        }
        let table = match entries {
            0 => Table::Empty,
            1..=MOST_ADDRESSES => {
                let offsets = (start..end).step_by(size_of::<Address>());
                Table::These(offsets.map(|offset| self.bytes(offset)).collect::<Option<_>>()?)
            }
            _ => Table::All,
        };
        Some((table, end))
    }

    fn announced(&self, command: u8) -> Option<()> {
        self.needs(net::VIRTIO_NET_F_GUEST_ANNOUNCE)?;
        if u32::from(command) != net::VIRTIO_NET_CTRL_ANNOUNCE_ACK {
            return None;
        }
        self.state.set_by_driver(|announced| announced.announce = false);
        Some(())
    }

    fn pairs(&self, command: u8, commands: &mut dyn Commands) -> Option<()> {
        self.needs(net::VIRTIO_NET_F_MQ)?;
        if u32::from(command) != net::VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET {
            return None;
        }
        let pairs = u16::from_le_bytes(self.all()?);
        commands.set_pairs(pairs).then_some(())
    }

    fn offloads(&self, command: u8, commands: &mut dyn Commands) -> Option<()> {
        self.needs(net::VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?;
        if u32::from(command) != net::VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET {
            return None;
        }
        let wanted = u64::from_le_bytes(self.all()?);
        let negotiated = Offloads::receive_negotiated(self.features);
        let offloads = Offloads::receive_negotiated(wanted);
        // Nothing that was not negotiated, nor without what it depends on.
        let sound = offloads.receive_features() == wanted && offloads.and(negotiated) == offloads;
        (sound && commands.set_receive_offloads(offloads)).then_some(())
    }

    fn needs(&self, feature: u32) -> Option<()> {
        has(self.features, feature).then_some(())
    }

    /// All that comes after class and command, if it is so many bytes.
    fn all<const N: usize>(&self) -> Option<[u8; N]> {
        let len = self.chain.readable_len().checked_sub(2)?;
        if len == N { self.bytes(2) } else { None }
    }

    fn bytes<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.chain.read_at(offset, &mut bytes).ok()?;
        Some(bytes)
    }
}
