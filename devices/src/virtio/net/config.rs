use std::sync::Arc;

use virtio_bindings::bindings::virtio_net::{VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP};

use super::super::ConfigSpace;
use super::state::State;

/// Bytes of `struct virtio_net_config` up to and with `mtu`.
const LEN: usize = 12;

/// The configuration space of a network card (virtio 1.2, section 5.1.4).
#[derive(Debug)]
pub(super) struct Config {
    pub(super) state: Arc<State>,
    pub(super) queue_pairs: u16,
    /// 0 if it is not offered.
    pub(super) mtu: u16,
}

impl Config {
    fn bytes(&self) -> [u8; LEN] {
        let announced = self.state.announced();
        let bit = |on, bit: u32| if on { u16::try_from(bit).unwrap_or(0) } else { 0 };
        let status = bit(announced.link(), VIRTIO_NET_S_LINK_UP)
            | bit(announced.announce, VIRTIO_NET_S_ANNOUNCE);
        let [a, b, c, d, e, f] = announced.mac.bytes();
        let [[s0, s1], [q0, q1], [m0, m1]] =
            [status, self.queue_pairs, self.mtu].map(u16::to_le_bytes);
        [a, b, c, d, e, f, s0, s1, q0, q1, m0, m1]
    }
}

impl ConfigSpace for Config {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let bytes = self.bytes();
        let field = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        for (to, from) in data.iter_mut().zip(field.unwrap_or_default()) {
            *to = *from;
        }
    }

    fn generation(&self) -> u32 {
        self.state.announced().generation
    }
}
