//! Unpacking the payload of a bzImage, never beyond a size that is known before.

use std::fmt;
use std::io::{self, BufReader, Read};

/// A compression that Linux knows for its own image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// gzip (`CONFIG_KERNEL_GZIP`).
    Gzip,
    /// bzip2 (`CONFIG_KERNEL_BZIP2`).
    Bzip2,
    /// The older of the two LZMA formats (`CONFIG_KERNEL_LZMA`).
    Lzma,
    /// xz (`CONFIG_KERNEL_XZ`).
    Xz,
    /// LZO (`CONFIG_KERNEL_LZO`); it is known by name only.
    Lzo,
    /// LZ4 in its legacy frame format (`CONFIG_KERNEL_LZ4`).
    Lz4,
    /// Zstandard (`CONFIG_KERNEL_ZSTD`).
    Zstd,
}

impl Compression {
    /// Tells the compression by a payload's first bytes, as the kernel's own tables do
    /// (lib/decompress.c).
    pub(crate) fn of(payload: &[u8]) -> Option<Self> {
        Some(match payload.first_chunk()? {
            [0x1f, 0x8b] => Self::Gzip,
            b"BZ" => Self::Bzip2,
            [0x5d, 0x00] => Self::Lzma,
            [0xfd, b'7'] => Self::Xz,
            [0x89, b'L'] => Self::Lzo,
            [0x02, 0x21] => Self::Lz4,
            [0x28, 0xb5] => Self::Zstd,
            _ => return None,
        })
    }

    /// The feature of this crate that brings it, if it is supported at all.
    pub(crate) fn feature(self) -> Option<&'static str> {
        match self {
            Self::Gzip => Some("gzip"),
            Self::Bzip2 => Some("bzip2"),
            Self::Lzma | Self::Xz => Some("xz"),
            Self::Lzo => None,
            Self::Lz4 => Some("lz4"),
            Self::Zstd => Some("zstd"),
        }
    }

    /// Whether the feature is switched on.
    pub(crate) fn is_enabled(self) -> bool {
        match self {
            Self::Gzip => cfg!(feature = "gzip"),
            Self::Bzip2 => cfg!(feature = "bzip2"),
            Self::Lzma | Self::Xz => cfg!(feature = "xz"),
            Self::Lzo => false,
            Self::Lz4 => cfg!(feature = "lz4"),
            Self::Zstd => cfg!(feature = "zstd"),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "LZMA",
            Self::Xz => "xz",
            Self::Lzo => "LZO",
            Self::Lz4 => "LZ4",
            Self::Zstd => "Zstandard",
        })
    }
}

/// The most memory for the dictionary of xz and LZMA; Linux packs itself with up to 128 MiB.
#[cfg(feature = "xz")]
const DICTIONARY_LIMIT_KIB: u32 = 256 << 10;

/// Takes what was unpacked, in order; an error ends the unpacking.
pub(crate) type Sink<'a> = dyn FnMut(&[u8]) -> io::Result<()> + 'a;

/// What is unpacked at a time, but for LZ4: small enough for the processor's cache.
#[allow(dead_code, reason = "unused without any compression")]
const CHUNK: usize = 128 << 10;

/// Unpacks `data`, which should give `size` bytes, into `sink`, and stops soon behind them: after one byte
/// more, or one block of LZ4. Returns how many bytes there were. It takes at most the dictionary or
/// window that the format demands, which is limited too, and a block of LZ4.
#[cfg_attr(
    not(all(
        feature = "gzip",
        feature = "bzip2",
        feature = "xz",
        feature = "lz4",
        feature = "zstd"
    )),
    allow(unused_variables, reason = "each feature brings its own arm")
)]
pub(crate) fn unpack(
    compression: Compression,
    data: impl Read,
    size: u32,
    sink: &mut Sink<'_>,
) -> io::Result<u64> {
    #[allow(dead_code, reason = "each feature brings its own arm")]
    fn buffered<R: Read>(data: R) -> BufReader<R> {
        BufReader::with_capacity(CHUNK, data)
    }
    match compression {
        #[cfg(feature = "gzip")]
        Compression::Gzip => {
            read_up_to(flate2::bufread::GzDecoder::new(buffered(data)), size, sink)
        }
        #[cfg(feature = "bzip2")]
        Compression::Bzip2 => {
            read_up_to(bzip2::bufread::BzDecoder::new(buffered(data)), size, sink)
        }
        #[cfg(feature = "xz")]
        Compression::Xz => {
            let limit = DICTIONARY_LIMIT_KIB;
            read_up_to(
                lzma_rust2::XzReader::new_mem_limit(buffered(data), false, limit),
                size,
                sink,
            )
        }
        #[cfg(feature = "xz")]
        Compression::Lzma => read_up_to(
            lzma_rust2::LzmaReader::new_mem_limit(buffered(data), DICTIONARY_LIMIT_KIB, None)?,
            size,
            sink,
        ),
        #[cfg(feature = "lz4")]
        Compression::Lz4 => unpack_lz4(data, size, sink),
        #[cfg(feature = "zstd")]
        Compression::Zstd => unpack_zstd(buffered(data), size, sink),
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}

/// ruzstd computes a frame's checksum and leaves comparing it to its user.
#[cfg(feature = "zstd")]
fn unpack_zstd(data: impl Read, size: u32, sink: &mut Sink<'_>) -> io::Result<u64> {
    use ruzstd::decoding::{DEFAULT_MAX_WINDOW_SIZE, StreamingDecoder};

    // A frame in one segment has a window of its own size.
    let window = u64::from(size).max(DEFAULT_MAX_WINDOW_SIZE);
    let mut decoder =
        StreamingDecoder::new_with_max_window_size(data, window).map_err(io::Error::other)?;
    let unpacked = read_up_to(&mut decoder, size, sink)?;
    let stated = decoder.decoder.get_checksum_from_data().filter(|_| unpacked <= u64::from(size));
    if stated.is_some() && stated != decoder.decoder.get_calculated_checksum() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the checksum does not match"));
    }
    Ok(unpacked)
}

/// The legacy frame: after the magic number, blocks of up to 8 MiB, each behind its packed size.
/// lz4_flex's own reader of it refuses blocks that packing made larger, as one with a compressed
/// built-in initramfs is.
#[cfg(feature = "lz4")]
fn unpack_lz4(mut data: impl Read, size: u32, sink: &mut Sink<'_>) -> io::Result<u64> {
    const BLOCK: usize = 8 << 20;
    /// What LZ4 makes of a block that cannot be packed (`LZ4_compressBound`).
    const MOST_PACKED: usize = BLOCK + BLOCK / 255 + 16;

    let mut word = [0; 4];
    data.read_exact(&mut word)?; // The magic number.
    let (mut packed, mut unpacked) = (Vec::new(), vec_with_capacity(BLOCK)?);
    unpacked.resize(BLOCK, 0);
    let mut len = 0;
    while len <= u64::from(size) && !at_end(&mut data, &mut word)? {
        let block = usize::try_from(u32::from_le_bytes(word)).unwrap_or(usize::MAX);
        if block > MOST_PACKED {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        packed.resize(block, 0);
        data.read_exact(&mut packed)?;
        let size = lz4_flex::block::decompress_into(&packed, &mut unpacked);
        let size = size.map_err(io::Error::other)?;
        sink(unpacked.get(..size).unwrap_or_default())?;
        len += size as u64;
    }
    Ok(len)
}

/// Reads a word, unless the data ended before.
#[cfg(feature = "lz4")]
fn at_end(data: &mut impl Read, word: &mut [u8; 4]) -> io::Result<bool> {
    let (first, rest) = word.split_at_mut(1);
    if data.read(first)? == 0 {
        return Ok(true);
    }
    data.read_exact(rest)?;
    Ok(false)
}

/// Reads to the end, so that the decoder checks what follows the data, or to `size + 1` bytes.
#[allow(dead_code, reason = "unused without any compression")]
fn read_up_to(reader: impl Read, size: u32, sink: &mut Sink<'_>) -> io::Result<u64> {
    let mut reader = reader.take(u64::from(size) + 1);
    let mut chunk = vec![0; CHUNK];
    let mut len = 0;
    loop {
        match reader.read(&mut chunk) {
            Ok(0) => return Ok(len),
            Ok(size) => {
                sink(chunk.get(..size).unwrap_or_default())?;
                len += size as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// A host that has not so much memory must not abort.
#[cfg(feature = "lz4")]
fn vec_with_capacity(capacity: usize) -> io::Result<Vec<u8>> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(capacity).map_err(|_| io::ErrorKind::OutOfMemory)?;
    Ok(vec)
}
