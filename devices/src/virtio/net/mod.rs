//! The network device (virtio 1.2, section 5.1): a network card of the guest, and what it is plugged
//! into.
//!
//! | type | what |
//! |---|---|
//! | [`Net`] | a card with its settings, plugged into a tap, a socket, or a network of one's own |
//! | [`UserNet`] | a network that needs no rights, by `passt` |
//! | [`NetDevice`] | the virtio device that it becomes |
//! | [`NetHandle`] | the link and counters, while a machine uses the card |
//! | [`NetBackend`] | the trait by which you bring a network of your own |
//! | [`MacAddress`] | the address of a card |
//!
//! # What a guest can rely on
//! - **Offloads.** Checksums and segmentation may be left undone, in both directions, as far as the
//!   backend can do them; what is not offered is never needed. Headers of the guest that break the
//!   rules are dropped and counted, and reach neither the host nor another guest.
//! - **Nothing is dropped in silence.** Without buffers of the guest, frames wait in the backend.
//!   A frame that has to be dropped is counted in [`NetStats`].
//! - **The other end.** When it is gone the guest sees its cable unplugged, and goes on.
//!
//! # When frames wait
//! Where exits are slow, as under nested virtualization, and a guest is busy sending, the card looks for its
//! frames by a timer instead of being notified of each. A frame waits for a quarter of a millisecond at most
//! then, and the driver hears after 32 of them at the latest that they were sent. Whether more frames come
//! so is measured over some hundreds of them, now and then; where it is not so, such trials are, in the long
//! run, of one frame in a hundred, and only of guests that send 4,000 to 20,000 a second.
//!
//! One thread serves all queues of a card, never a vCPU's. With [`Net::vhost`], threads of the host's kernel
//! do, for which not all of the above holds.

mod backend;
mod builder;
mod card;
mod config;
mod control;
mod error;
mod filter;
mod header;
mod mac;
mod mitigation;
mod offloads;
mod pair;
mod rate_limit;
mod receive;
mod room;
mod run;
mod state;
mod stats;
mod stream;
mod sys;
mod tap;
mod transmit;
mod user;
mod vhost;
mod vhost_sys;
mod worker;

use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;

pub use backend::{BackendError, Frame, MAX_FRAME_LEN, MIN_FRAME_LEN, NetBackend, Room};
pub use builder::{MAX_MTU, MAX_QUEUE_PAIRS, MIN_MTU, Net};
pub use error::NetError;
pub use header::{Checksum, FrameHeader, SegmentProtocol, Segmentation};
pub use mac::{MacAddress, MacAddressError};
pub use offloads::Offloads;
pub use rate_limit::RateLimit;
pub use state::NetHandle;
pub use stats::NetStats;
pub use user::{ParsePublishError, Publish, UserNet, UserNetError};

use super::token_bucket::Limiter;
use super::{ConfigSpace, Counters, DeviceError, Session, VirtioDevice};
use config::Config;
use state::State;
use vhost::Vhost;

/// Chains that each queue can hold.
const QUEUE_SIZE: u16 = 256;
/// Any driver takes packets of so many bytes (virtio 1.2, 5.1.6.3.1).
const USUAL_MTU: u16 = 1500;
/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_LEN: usize = 18;

/// A network card as a virtio device.
pub struct NetDevice {
    /// One for each pair of queues; none once it is gone.
    backends: Vec<Option<Box<dyn NetBackend>>>,
    queue_sizes: Vec<u16>,
    /// What all backends can do, by direction.
    send_offloads: Offloads,
    receive_offloads: Offloads,
    mtu: Option<u16>,
    /// They outlive sessions: a reset forgives no debt.
    send_limiter: Option<Limiter>,
    receive_limiter: Option<Limiter>,
    /// Who serves the queues, if not this device.
    vhost: Option<Vhost>,
    state: Arc<State>,
}

impl NetDevice {
    /// The device for `net`.
    #[must_use]
    pub fn new(net: Net) -> Self {
        let Net { backends, mtu, rate_limit, vhost, state, .. } = net;
        // Two for each pair, and the control queue.
        let queues = backends.len().saturating_mul(2).saturating_add(1);
        let common = |of: fn(&dyn NetBackend) -> Offloads| {
            backends.iter().fold(Offloads::ALL, |all, backend| all.and(of(&**backend)))
        };
        Self {
            queue_sizes: vec![QUEUE_SIZE; queues],
            send_offloads: common(|backend| backend.send_offloads()),
            receive_offloads: common(|backend| backend.receive_offloads()),
            backends: backends.into_iter().map(Some).collect(),
            mtu,
            send_limiter: rate_limit.limiter(Instant::now()),
            receive_limiter: rate_limit.limiter(Instant::now()),
            vhost,
            state,
        }
    }

    /// The longest frame for the guest that is not to be cut up: as long as its packets may be, if the
    /// guest is told.
    fn longest_frame(&self) -> usize {
        if self.mtu.is_some() { self.promised_frame() } else { MAX_FRAME_LEN }
    }

    /// The longest frame for which a driver without segmentation must have room in its buffers.
    fn promised_frame(&self) -> usize {
        usize::from(self.mtu.unwrap_or(0).max(USUAL_MTU)).saturating_add(ETHERNET_LEN)
    }

    fn queue_pairs(&self) -> u16 {
        u16::try_from(self.backends.len()).unwrap_or(MAX_QUEUE_PAIRS)
    }
}

impl VirtioDevice for NetDevice {
    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let always = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_RX,
            VIRTIO_NET_F_CTRL_RX_EXTRA,
            VIRTIO_NET_F_CTRL_MAC_ADDR,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        let always = always.into_iter().fold(0, |bits, feature| bits | bit(feature));
        let mtu = if self.mtu.is_some() { bit(VIRTIO_NET_F_MTU) } else { 0 };
        let queues = if self.queue_pairs() > 1 { bit(VIRTIO_NET_F_MQ) } else { 0 };
        let (send, receive) =
            (self.send_offloads.send_features(), self.receive_offloads.receive_features());
        let choice = if receive == 0 { 0 } else { bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS) };
        always | mtu | queues | send | receive | choice
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn kicks(&self) -> u16 {
        // Not the control queue, which is ours.
        if self.vhost.is_some() { self.queue_pairs().saturating_mul(2) } else { 0 }
    }

    fn check(&self) -> Result<(), Box<dyn Error + Send + Sync>> {
        let limited = self.send_limiter.is_some() || self.receive_limiter.is_some();
        if self.vhost.is_some() && limited {
            return Err(NetError::VhostRateLimit.into());
        }
        Ok(())
    }

    fn config(&self) -> Arc<dyn ConfigSpace> {
        Arc::new(Config {
            state: Arc::clone(&self.state),
            queue_pairs: if self.queue_pairs() > 1 { self.queue_pairs() } else { 0 },
            mtu: self.mtu.unwrap_or(0),
        })
    }

    fn counters(&self) -> Arc<dyn Counters> {
        Arc::clone(&self.state) as _
    }

    fn run(&mut self, session: &mut Session) -> Result<(), DeviceError> {
        worker::run(self, session)
    }
}

impl fmt::Debug for NetDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetDevice")
            .field("queue_pairs", &self.backends.len())
            .field("mac", &self.state.own_mac())
            .field("mtu", &self.mtu)
            .field("vhost", &self.vhost.is_some())
            .finish_non_exhaustive()
    }
}

fn bit(feature: u32) -> u64 {
    1u64.checked_shl(feature).unwrap_or(0)
}

fn has(features: u64, feature: u32) -> bool {
    features & bit(feature) != 0
}
