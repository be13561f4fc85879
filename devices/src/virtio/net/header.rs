use virtio_bindings::bindings::virtio_net as net;

use super::offloads::Offloads;

/// What is said of a frame beside its bytes: what is left undone in it (virtio 1.2, 5.1.6, `struct
/// virtio_net_hdr`). The default says: nothing, but nobody has looked at the checksum either.
///
/// One that comes from a driver was checked against the length of its frame and the features in force.
/// The bytes of the frame were not: whether there is TCP where the header says so is for whoever cuts
/// it up to find out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameHeader {
    /// How far the checksum is.
    pub checksum: Checksum,
    /// How the frame is to be cut up, if it is.
    pub segmentation: Option<Segmentation>,
}

/// How far the checksum of a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Checksum {
    /// As in any frame from a wire.
    #[default]
    Complete,
    /// Complete, and checked.
    Valid,
    /// To be computed, over the bytes from `start` to the end of the frame. It lies `offset` bytes
    /// behind `start`, where the sum over the pseudo header is now.
    Missing {
        /// First byte to sum over.
        start: u16,
        /// From there to the field for the checksum.
        offset: u16,
    },
}

/// How a frame is to be cut up: into segments with a header each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segmentation {
    /// Which protocol.
    pub protocol: SegmentProtocol,
    /// The payload of each segment but the last in bytes, not zero.
    pub size: u16,
    /// How many bytes of headers there are. A hint that may be wrong; 0: not known.
    pub header_len: u16,
    /// The TCP header says "congestion window reduced".
    pub ecn: bool,
}

/// What a frame that is to be cut up holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SegmentProtocol {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over either.
    Udp,
}

/// Bytes of a header in a driver's buffer.
pub(super) const HEADER_LEN: usize = 12;
/// Where `num_buffers` is in it.
pub(super) const NUM_BUFFERS: usize = 10;

/// `flags` and `gso_type` as bytes.
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
const GSO_ECN: u8 = 0x80;

const _: () = assert!(
    NEEDS_CSUM as u32 == net::VIRTIO_NET_HDR_F_NEEDS_CSUM
        && DATA_VALID as u32 == net::VIRTIO_NET_HDR_F_DATA_VALID
        && GSO_NONE as u32 == net::VIRTIO_NET_HDR_GSO_NONE
        && GSO_TCPV4 as u32 == net::VIRTIO_NET_HDR_GSO_TCPV4
        && GSO_TCPV6 as u32 == net::VIRTIO_NET_HDR_GSO_TCPV6
        && GSO_UDP_L4 as u32 == net::VIRTIO_NET_HDR_GSO_UDP_L4
        && GSO_ECN as u32 == net::VIRTIO_NET_HDR_GSO_ECN
);

impl FrameHeader {
    /// What a driver says of a frame of `len` bytes that it sends; `None` if it may not say that
    /// (virtio 1.2, 5.1.6.2.1).
    pub(super) fn from_driver(
        bytes: [u8; HEADER_LEN],
        len: usize,
        allowed: Offloads,
    ) -> Option<Self> {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1, _, _] = bytes;
        // The device must ignore flags that it does not know, and the driver may set no other one.
        let checksum = if flags & NEEDS_CSUM == 0 {
            Checksum::Complete
        } else {
            let (start, offset) = (u16::from_le_bytes([c0, c1]), u16::from_le_bytes([o0, o1]));
            let end = usize::from(start).checked_add(offset.into())?.checked_add(2)?;
            if !allowed.checksum || end > len {
                return None;
            }
            Checksum::Missing { start, offset }
        };
        let ecn = gso_type & GSO_ECN != 0;
        let protocol = match gso_type & !GSO_ECN {
            GSO_NONE if !ecn => return Some(Self { checksum, segmentation: None }),
            GSO_TCPV4 if allowed.tcp4 => SegmentProtocol::Tcp4,
            GSO_TCPV6 if allowed.tcp6 => SegmentProtocol::Tcp6,
            GSO_UDP_L4 if allowed.udp4 && allowed.udp6 && !ecn => SegmentProtocol::Udp,
            _ => return None,
        };
        let (size, header_len) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([h0, h1]));
        let sound = size > 0
            && usize::from(header_len) <= len
            && matches!(checksum, Checksum::Missing { .. })
            && (allowed.ecn || !ecn);
        let segmentation = Segmentation { protocol, size, header_len, ecn };
        sound.then_some(Self { checksum, segmentation: Some(segmentation) })
    }

    /// In a driver's buffer. `num_buffers` is 1.
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let (flags, start, offset) = match self.checksum {
            Checksum::Complete => (0, 0, 0),
            Checksum::Valid => (DATA_VALID, 0, 0),
            Checksum::Missing { start, offset } => (NEEDS_CSUM, start, offset),
        };
        let (gso_type, size, header_len) = match self.segmentation {
            None => (GSO_NONE, 0, 0),
            Some(Segmentation { protocol, size, header_len, ecn }) => {
                let kind = match protocol {
                    SegmentProtocol::Tcp4 => GSO_TCPV4,
                    SegmentProtocol::Tcp6 => GSO_TCPV6,
                    SegmentProtocol::Udp => GSO_UDP_L4,
                };
                (if ecn { kind | GSO_ECN } else { kind }, size, header_len)
            }
        };
        let [[h0, h1], [s0, s1], [c0, c1], [o0, o1]] =
            [header_len, size, start, offset].map(u16::to_le_bytes);
        [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1, 1, 0]
    }
}

/// Whether a driver that takes `allowed` can be given a frame with these `flags` and this `gso_type`.
pub(super) fn is_allowed(flags: u8, gso_type: u8, allowed: Offloads) -> bool {
    let Offloads { checksum, tcp4, tcp6, ecn, udp4, udp6 } = allowed;
    let segments = match gso_type & !GSO_ECN {
        GSO_NONE => true,
        GSO_TCPV4 => tcp4,
        GSO_TCPV6 => tcp6,
        GSO_UDP_L4 => udp4 || udp6,
        _ => false,
    };
    segments && (checksum || flags & NEEDS_CSUM == 0) && (ecn || gso_type & GSO_ECN == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `flags`, `gso_type`, `hdr_len`, `gso_size`, `csum_start`, `csum_offset`.
    fn header(fields: (u8, u8, u16, u16, u16, u16)) -> [u8; HEADER_LEN] {
        let (flags, gso_type, header_len, size, start, offset) = fields;
        let mut bytes = [0xaa; HEADER_LEN];
        (bytes[0], bytes[1]) = (flags, gso_type);
        for (at, value) in [(2, header_len), (4, size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn sound_headers_come_out_as_they_went_in() {
        for fields in [
            (0, 0, 0, 0, 0, 0),
            (1, 0, 0, 0, 34, 16),
            (1, 1, 54, 1448, 34, 16),
            (1, 0x81, 54, 1448, 34, 16),
            (1, 4, 74, 1428, 54, 16),
            (1, 5, 42, 1472, 34, 6),
        ] {
            let parsed = FrameHeader::from_driver(header(fields), 3000, Offloads::ALL).unwrap();
            let bytes = parsed.to_bytes();
            assert_eq!(bytes[..NUM_BUFFERS], header(fields)[..NUM_BUFFERS]);
            assert_eq!(bytes[NUM_BUFFERS..], [1, 0]);
        }
        let ignored = FrameHeader::from_driver(header((0xfe, 0, 9, 9, 9, 9)), 60, Offloads::NONE);
        assert_eq!(
            ignored,
            Some(FrameHeader::default()),
            "unknown flags, and fields without meaning"
        );
    }

    #[test]
    fn unsound_headers_are_refused() {
        for (fields, why) in [
            ((1, 0, 0, 0, 98, 1), "the checksum ends behind the frame"),
            ((1, 0, 0, 0, 0xffff, 0xffff), "far behind"),
            ((0, 1, 54, 1448, 34, 16), "segments without checksum"),
            ((1, 1, 54, 0, 34, 16), "segments of nothing"),
            ((1, 1, 101, 1448, 34, 16), "headers longer than the frame"),
            ((1, 3, 54, 1448, 34, 16), "UFO, which is never offered"),
            ((1, 2, 54, 1448, 34, 16), "a type that does not exist"),
            ((1, 0x80, 54, 1448, 34, 16), "ECN of nothing"),
            ((1, 0x85, 54, 1448, 34, 16), "ECN of UDP"),
            ((1, 0x7f, 54, 1448, 34, 16), "any type"),
        ] {
            assert_eq!(FrameHeader::from_driver(header(fields), 100, Offloads::ALL), None, "{why}");
        }
    }

    #[test]
    fn what_was_not_negotiated_is_refused() {
        for (fields, allowed) in [
            ((1, 0, 0, 0, 34, 16), Offloads::NONE),
            ((1, 1, 54, 1448, 34, 16), Offloads { tcp4: false, ..Offloads::ALL }),
            ((1, 4, 54, 1448, 34, 16), Offloads { tcp6: false, ..Offloads::ALL }),
            ((1, 5, 54, 1448, 34, 16), Offloads::TCP),
            ((1, 0x81, 54, 1448, 34, 16), Offloads { ecn: false, ..Offloads::ALL }),
        ] {
            assert_eq!(FrameHeader::from_driver(header(fields), 100, allowed), None);
            assert!(FrameHeader::from_driver(header(fields), 100, Offloads::ALL).is_some());
        }
    }

    #[test]
    fn any_twelve_bytes_parse_or_do_not() {
        for value in 0..=u16::MAX {
            let [a, b] = value.to_le_bytes();
            for rest in [0, 1, 0x7f, 0x80, 0xff] {
                let mut bytes = [rest; HEADER_LEN];
                (bytes[0], bytes[1]) = (a, b);
                if let Some(parsed) = FrameHeader::from_driver(bytes, 60, Offloads::ALL) {
                    let again = FrameHeader::from_driver(parsed.to_bytes(), 60, Offloads::ALL);
                    assert_eq!(again, Some(parsed));
                }
            }
        }
    }
}
