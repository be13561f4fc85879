//! What a driver may ask of a disk, and which of it is sound (virtio 1.2, section 5.2.6).
//!
//! Pure: bytes in, a [`Request`] or the [`Status`] that refuses it out.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH, VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN,
    VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES, VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

/// The unit of the protocol, whatever the block size of the disk: 512 bytes.
pub const SECTOR: u64 = 512;

/// Bytes of `struct virtio_blk_req` before its data.
pub(super) const HEADER_LEN: usize = 16;
/// Bytes of one `struct virtio_blk_discard_write_zeroes`.
pub(super) const RANGE_LEN: usize = 16;
/// The most ranges in one discard or write-zeroes request.
pub(super) const MAX_RANGES: u32 = 16;
/// The most sectors in one range: 1 GiB.
pub(super) const MAX_RANGE_SECTORS: u32 = 1 << 21;

/// How a request ended, as its last byte tells the driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok = 0,
    /// `VIRTIO_BLK_S_IOERR`
    IoError = 1,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported = 2,
}

/// Bytes of the disk, inside its capacity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) offset: u64,
    pub(super) len: u64,
}

/// A request that may be carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    Read(Extent),
    Write(Extent),
    Flush,
    GetId,
    /// This many ranges follow, each to be checked by [`Rules::range`].
    Discard(usize),
    WriteZeroes(usize),
}

/// One range of a discard or write-zeroes request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) extent: Extent,
    /// The disk may give the storage back, as long as zeroes are read from it afterwards.
    pub(super) unmap: bool,
}

/// What of a disk decides whether a request is sound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// Sectors of 512 bytes.
    pub(super) capacity: u64,
    pub(super) read_only: bool,
    /// Discard was negotiated.
    pub(super) discard: bool,
    /// Write-zeroes was negotiated.
    pub(super) write_zeroes: bool,
}

impl Rules {
    /// Checks a request with this header, `output` bytes of data from the driver and `input` bytes of
    /// room for data to it.
    ///
    /// Data of the direction that a request does not have is ignored.
    pub(super) fn check(
        &self,
        header: [u8; HEADER_LEN],
        output: u64,
        input: u64,
    ) -> Result<Request, Status> {
        let [k0, k1, k2, k3, _, _, _, _, sector @ ..] = header;
        let sector = u64::from_le_bytes(sector);
        match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_IN => Ok(Request::Read(self.extent(sector, input)?)),
            VIRTIO_BLK_T_OUT if self.read_only => Err(Status::IoError),
            VIRTIO_BLK_T_OUT => Ok(Request::Write(self.extent(sector, output)?)),
            VIRTIO_BLK_T_FLUSH => Ok(Request::Flush),
            VIRTIO_BLK_T_GET_ID => Ok(Request::GetId),
            VIRTIO_BLK_T_DISCARD => {
                self.changes(self.discard)?;
                Ok(Request::Discard(range_count(output)?))
            }
            VIRTIO_BLK_T_WRITE_ZEROES => {
                self.changes(self.write_zeroes)?;
                Ok(Request::WriteZeroes(range_count(output)?))
            }
            _ => Err(Status::Unsupported),
        }
    }

    /// Checks one range of `request`: of the two that have ranges, only write-zeroes has a flag.
    pub(super) fn range(&self, request: &Request, bytes: [u8; RANGE_LEN]) -> Result<Range, Status> {
        let [s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..] = bytes;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
        let flags = u32::from_le_bytes(flags);
        let known = match request {
            Request::WriteZeroes(_) => VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
            _ => 0,
        };
        if flags & !known != 0 {
            return Err(Status::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Status::IoError);
        }
        let extent = self.extent(sector, u64::from(sectors).saturating_mul(SECTOR))?;
        Ok(Range { extent, unmap: flags & VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP != 0 })
    }

    fn changes(&self, negotiated: bool) -> Result<(), Status> {
        match (self.read_only, negotiated) {
            (true, _) => Err(Status::IoError),
            (false, false) => Err(Status::Unsupported),
            (false, true) => Ok(()),
        }
    }

    fn extent(&self, sector: u64, len: u64) -> Result<Extent, Status> {
        if !len.is_multiple_of(SECTOR) {
            return Err(Status::IoError);
        }
        let offset = sector.checked_mul(SECTOR).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        if end > self.capacity.saturating_mul(SECTOR) {
            return Err(Status::IoError);
        }
        Ok(Extent { offset, len })
    }
}

/// How many ranges so many bytes are.
fn range_count(bytes: u64) -> Result<usize, Status> {
    let bytes = usize::try_from(bytes).map_err(|_| Status::IoError)?;
    let whole = bytes.is_multiple_of(RANGE_LEN);
    let count = bytes.checked_div(RANGE_LEN).unwrap_or(0);
    let few = (1..=MAX_RANGES).contains(&u32::try_from(count).unwrap_or(u32::MAX));
    if whole && few { Ok(count) } else { Err(Status::IoError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: Rules =
        Rules { capacity: 100, read_only: false, discard: true, write_zeroes: true };

    fn header(kind: u32, sector: u64) -> [u8; HEADER_LEN] {
        let mut header = [0xaa; HEADER_LEN]; // The reserved field does not matter.
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        header
    }

    fn range(sector: u64, sectors: u32, flags: u32) -> [u8; RANGE_LEN] {
        let mut range = [0; RANGE_LEN];
        range[..8].copy_from_slice(&sector.to_le_bytes());
        range[8..12].copy_from_slice(&sectors.to_le_bytes());
        range[12..].copy_from_slice(&flags.to_le_bytes());
        range
    }

    #[test]
    fn reads_and_writes_end_at_the_capacity() {
        for (sector, sectors, good) in [
            (0, 100, true),
            (99, 1, true),
            (100, 0, true),
            (100, 1, false),
            (99, 2, false),
            (101, 0, false),
            (u64::MAX, 1, false),
            (u64::MAX / 512, 1, false),
            (1 << 55, 1, false), // Times 512, this is zero again.
            (0, u64::MAX / 512, false),
        ] {
            let len = sectors * SECTOR;
            let read = RULES.check(header(VIRTIO_BLK_T_IN, sector), 0, len);
            let write = RULES.check(header(VIRTIO_BLK_T_OUT, sector), len, 0);
            if good {
                let extent = Extent { offset: sector * SECTOR, len };
                assert_eq!(read, Ok(Request::Read(extent)));
                assert_eq!(write, Ok(Request::Write(extent)));
            } else {
                assert_eq!(read, Err(Status::IoError), "{sector} {sectors}");
                assert_eq!(write, Err(Status::IoError), "{sector} {sectors}");
            }
        }
    }

    #[test]
    fn data_is_whole_sectors() {
        for len in [1, 511, 513, 1023] {
            assert_eq!(RULES.check(header(VIRTIO_BLK_T_IN, 0), 0, len), Err(Status::IoError));
            assert_eq!(RULES.check(header(VIRTIO_BLK_T_OUT, 0), len, 0), Err(Status::IoError));
        }
    }

    #[test]
    fn a_read_only_disk_refuses_every_change() {
        let rules = Rules { read_only: true, ..RULES };
        for kind in [VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(rules.check(header(kind, 0), 512, 0), Err(Status::IoError));
        }
        assert_eq!(rules.check(header(VIRTIO_BLK_T_FLUSH, 0), 0, 0), Ok(Request::Flush));
    }

    #[test]
    fn what_is_unknown_or_was_not_negotiated_is_unsupported() {
        let rules = Rules { discard: false, write_zeroes: false, ..RULES };
        for kind in [2, 3, 5, 14, 15, 26, 0x8000_0000, u32::MAX] {
            assert_eq!(RULES.check(header(kind, 0), 16, 512), Err(Status::Unsupported));
        }
        for kind in [VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_WRITE_ZEROES] {
            assert_eq!(rules.check(header(kind, 0), 16, 0), Err(Status::Unsupported));
        }
    }

    #[test]
    fn ranges_are_whole_and_few() {
        let most = usize::try_from(MAX_RANGES).unwrap();
        for (bytes, expected) in [
            (0, Err(Status::IoError)),
            (15, Err(Status::IoError)),
            (16, Ok(Request::Discard(1))),
            (17, Err(Status::IoError)),
            (16 * u64::from(MAX_RANGES), Ok(Request::Discard(most))),
            (16 * u64::from(MAX_RANGES) + 16, Err(Status::IoError)),
            (u64::MAX, Err(Status::IoError)),
        ] {
            assert_eq!(RULES.check(header(VIRTIO_BLK_T_DISCARD, 7), bytes, 0), expected);
        }
    }

    #[test]
    fn a_range_has_known_flags_and_lies_inside() {
        let extent = Extent { offset: 5120, len: 1024 };
        let (discard, zeroes) = (Request::Discard(1), Request::WriteZeroes(1));
        assert_eq!(RULES.range(&discard, range(10, 2, 0)), Ok(Range { extent, unmap: false }));
        assert_eq!(RULES.range(&zeroes, range(10, 2, 1)), Ok(Range { extent, unmap: true }));
        assert_eq!(RULES.range(&discard, range(10, 2, 1)), Err(Status::Unsupported));
        assert_eq!(RULES.range(&zeroes, range(10, 2, 2)), Err(Status::Unsupported));
        assert_eq!(RULES.range(&zeroes, range(99, 2, 0)), Err(Status::IoError));
        assert_eq!(RULES.range(&zeroes, range(u64::MAX, 2, 0)), Err(Status::IoError));
        let huge = Rules { capacity: 1 << 40, ..RULES };
        assert!(huge.range(&discard, range(0, MAX_RANGE_SECTORS, 0)).is_ok());
        assert_eq!(huge.range(&discard, range(0, MAX_RANGE_SECTORS + 1, 0)), Err(Status::IoError));
    }
}
