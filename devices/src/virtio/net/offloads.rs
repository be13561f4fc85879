use virtio_bindings::bindings::virtio_net as net;

use super::{bit, has};

/// What may be left undone in frames of one direction, for a network card or the other end to do.
///
/// Segmentation of TCP or UDP implies checksums: what is to be cut up has none yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct Offloads {
    /// The checksum of TCP or UDP ([`Checksum::Missing`](super::Checksum)).
    pub checksum: bool,
    /// Segmentation of TCP over IPv4 (TSO).
    pub tcp4: bool,
    /// Segmentation of TCP over IPv6.
    pub tcp6: bool,
    /// Segmentation of TCP segments with ECN's "congestion window reduced".
    pub ecn: bool,
    /// Segmentation of UDP over IPv4 (USO).
    pub udp4: bool,
    /// Segmentation of UDP over IPv6.
    pub udp6: bool,
}

impl Offloads {
    /// None at all: frames go over the wire as they are.
    pub const NONE: Self =
        Self { checksum: false, tcp4: false, tcp6: false, ecn: false, udp4: false, udp6: false };

    /// All of TCP.
    pub const TCP: Self =
        Self { checksum: true, tcp4: true, tcp6: true, ecn: true, udp4: false, udp6: false };

    /// All there are.
    pub const ALL: Self = Self { udp4: true, udp6: true, ..Self::TCP };

    /// What both have.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self {
            checksum: self.checksum && other.checksum,
            tcp4: self.tcp4 && other.tcp4,
            tcp6: self.tcp6 && other.tcp6,
            ecn: self.ecn && other.ecn,
            udp4: self.udp4 && other.udp4,
            udp6: self.udp6 && other.udp6,
        }
    }

    /// Whether frames may come that are to be cut up.
    pub(super) const fn segments(self) -> bool {
        self.tcp4 || self.tcp6 || self.udp4 || self.udp6
    }

    /// Only what has all that it depends on (virtio 1.2, 5.1.3.1).
    #[must_use]
    pub(super) const fn consistent(self) -> Self {
        let Self { checksum, tcp4, tcp6, ecn, udp4, udp6 } = self;
        Self {
            checksum,
            tcp4: tcp4 && checksum,
            tcp6: tcp6 && checksum,
            ecn: ecn && checksum && (tcp4 || tcp6),
            udp4: udp4 && checksum,
            udp6: udp6 && checksum,
        }
    }

    /// The feature bits by which they are offered for frames that the driver sends (`HOST_…`). There is
    /// one bit for both kinds of UDP.
    pub(super) fn send_features(self) -> u64 {
        let Self { checksum, tcp4, tcp6, ecn, udp4, udp6 } = self.consistent();
        bits(&[
            (checksum, net::VIRTIO_NET_F_CSUM),
            (tcp4, net::VIRTIO_NET_F_HOST_TSO4),
            (tcp6, net::VIRTIO_NET_F_HOST_TSO6),
            (ecn, net::VIRTIO_NET_F_HOST_ECN),
            (udp4 && udp6, net::VIRTIO_NET_F_HOST_USO),
        ])
    }

    /// Those that the features in force allow for frames that the driver sends.
    pub(super) fn send_negotiated(features: u64) -> Self {
        let udp = has(features, net::VIRTIO_NET_F_HOST_USO);
        Self {
            checksum: has(features, net::VIRTIO_NET_F_CSUM),
            tcp4: has(features, net::VIRTIO_NET_F_HOST_TSO4),
            tcp6: has(features, net::VIRTIO_NET_F_HOST_TSO6),
            ecn: has(features, net::VIRTIO_NET_F_HOST_ECN),
            udp4: udp,
            udp6: udp,
        }
        .consistent()
    }

    /// The feature bits by which they are offered for frames that the driver receives (`GUEST_…`). They
    /// are also those of `VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`.
    pub(super) fn receive_features(self) -> u64 {
        let Self { checksum, tcp4, tcp6, ecn, udp4, udp6 } = self.consistent();
        bits(&[
            (checksum, net::VIRTIO_NET_F_GUEST_CSUM),
            (tcp4, net::VIRTIO_NET_F_GUEST_TSO4),
            (tcp6, net::VIRTIO_NET_F_GUEST_TSO6),
            (ecn, net::VIRTIO_NET_F_GUEST_ECN),
            (udp4, net::VIRTIO_NET_F_GUEST_USO4),
            (udp6, net::VIRTIO_NET_F_GUEST_USO6),
        ])
    }

    /// Those that the features in force allow for frames that the driver receives.
    pub(super) fn receive_negotiated(features: u64) -> Self {
        Self {
            checksum: has(features, net::VIRTIO_NET_F_GUEST_CSUM),
            tcp4: has(features, net::VIRTIO_NET_F_GUEST_TSO4),
            tcp6: has(features, net::VIRTIO_NET_F_GUEST_TSO6),
            ecn: has(features, net::VIRTIO_NET_F_GUEST_ECN),
            udp4: has(features, net::VIRTIO_NET_F_GUEST_USO4),
            udp6: has(features, net::VIRTIO_NET_F_GUEST_USO6),
        }
        .consistent()
    }
}

fn bits(offered: &[(bool, u32)]) -> u64 {
    offered.iter().filter(|(on, _)| *on).fold(0, |bits, &(_, feature)| bits | bit(feature))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_and_offloads_are_the_same_thing() {
        for offloads in [Offloads::NONE, Offloads::TCP, Offloads::ALL] {
            assert_eq!(Offloads::send_negotiated(offloads.send_features()), offloads);
            assert_eq!(Offloads::receive_negotiated(offloads.receive_features()), offloads);
        }
        assert_eq!(Offloads::ALL.send_features() & Offloads::ALL.receive_features(), 0);
    }

    #[test]
    fn segmentation_without_checksums_is_not_on() {
        let odd = Offloads { checksum: false, ..Offloads::ALL };
        assert_eq!((odd.send_features(), odd.receive_features()), (0, 0));
        let tso_only = bit(net::VIRTIO_NET_F_HOST_TSO4) | bit(net::VIRTIO_NET_F_GUEST_TSO4);
        assert_eq!(Offloads::send_negotiated(tso_only), Offloads::NONE);
        assert_eq!(Offloads::receive_negotiated(tso_only), Offloads::NONE);
        let one_udp = Offloads { udp6: false, ..Offloads::ALL };
        assert_eq!(one_udp.send_features(), Offloads::TCP.send_features());
    }
}
