//! Values to bytes and back: bincode 2, fixed-size little-endian integers, a size limit. One of the two
//! files that know the codec (the other is [`crate::image`]).
//!
//! # Frames
//! On a connection every value travels in a frame. The header is written by hand and never depends on the
//! codec; integers are little-endian:
//!
//! | offset | size | what |
//! |---|---|---|
//! | 0 | 4 | `BIHA` |
//! | 4 | 2 | [`PROTOCOL_VERSION`] |
//! | 6 | 4 | length of the body in bytes, at most [`MAX_BODY`] |
//! | 10 | 8 | cluster id |
//! | 18 | 4 | crc32c of the 18 bytes before it and of the body |
//! | 22 | | body |
//!
//! Nothing is allocated or waited for on the word of a header that is out of bounds.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{ClusterId, Envelope, Incarnation, NodeId};

/// Largest body in bytes that is encoded or decoded.
pub const MAX_BODY: usize = 64 * 1024;
/// Version of the frames and of everything in them. Any change of a released message is a new version.
pub const PROTOCOL_VERSION: u16 = 1;
/// Size of a frame's header in bytes.
pub const HEADER_SIZE: usize = 22;
/// Largest frame in bytes.
pub const MAX_FRAME: usize = HEADER_SIZE + MAX_BODY;

const MAGIC: [u8; 4] = *b"BIHA";
/// The crc covers the header up to here.
const CRC_OFFSET: usize = 18;

fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_BODY>()
}

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The body cannot be read as the value asked for.
    #[error("malformed body: {0}")]
    Body(String),
    /// Bytes are left over.
    #[error("{0} bytes left over")]
    Trailing(usize),
    /// A body of this many bytes is larger than [`MAX_BODY`].
    #[error("body of {0} bytes exceeds the limit of {MAX_BODY} bytes")]
    TooLarge(usize),
    /// Not the beginning of a frame.
    #[error("not a biha frame")]
    Magic,
    /// A frame of another protocol version.
    #[error("protocol version {0} is not supported (this node speaks version {PROTOCOL_VERSION})")]
    Version(u16),
    /// The frame was damaged.
    #[error("checksum mismatch")]
    Checksum,
    /// Header and envelope name different clusters.
    #[error("frame of cluster {header} carries an envelope of cluster {envelope}")]
    Cluster {
        /// As the header says.
        header: ClusterId,
        /// As the envelope says.
        envelope: ClusterId,
    },
}

/// Encodes a value of at most [`MAX_BODY`] bytes.
pub fn pack<T: Serialize>(value: &T) -> Result<Vec<u8>, WireError> {
    let body = bincode::serde::encode_to_vec(value, codec()).map_err(|e| WireError::Body(e.to_string()))?;
    if body.len() > MAX_BODY {
        return Err(WireError::TooLarge(body.len()));
    }
    Ok(body)
}

/// Decodes a value; all bytes must be used.
pub fn unpack<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    let (value, used) =
        bincode::serde::decode_from_slice(bytes, codec()).map_err(|e| WireError::Body(e.to_string()))?;
    if used != bytes.len() {
        return Err(WireError::Trailing(bytes.len() - used));
    }
    Ok(value)
}

/// Who answers at the far end of a connection; the accepting side's only word on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The node.
    pub node: NodeId,
    /// The life of the node.
    pub incarnation: Incarnation,
    /// Drawn at random for that life.
    pub tag: u32,
}

/// The checked header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The sender's cluster.
    pub cluster: ClusterId,
    /// Size of the body in bytes, at most [`MAX_BODY`].
    pub length: usize,
    crc: u32,
}

impl Header {
    /// Reads the header at the start of `bytes`; `None` if more bytes are needed. Bytes that cannot become
    /// a frame are refused as early as they are seen.
    pub fn read(bytes: &[u8]) -> Result<Option<Header>, WireError> {
        let magic = &bytes[..bytes.len().min(MAGIC.len())];
        if magic != &MAGIC[..magic.len()] {
            return Err(WireError::Magic);
        }
        let Some((_, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
        let Some((version, rest)) = rest.split_first_chunk::<2>() else { return Ok(None) };
        let version = u16::from_le_bytes(*version);
        if version != PROTOCOL_VERSION {
            return Err(WireError::Version(version));
        }
        let Some((length, rest)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_le_bytes(*length) as usize;
        if length > MAX_BODY {
            return Err(WireError::TooLarge(length));
        }
        let Some((cluster, rest)) = rest.split_first_chunk::<8>() else { return Ok(None) };
        let Some((crc, _)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let cluster = ClusterId(u64::from_le_bytes(*cluster));
        Ok(Some(Header { cluster, length, crc: u32::from_le_bytes(*crc) }))
    }
}

/// Encodes a frame.
pub fn encode(envelope: &Envelope) -> Result<Vec<u8>, WireError> {
    Ok(frame(envelope.cluster, &pack(envelope)?))
}

/// Decodes the frame at the start of `bytes` and says how many bytes it took; `None` if more are needed.
pub fn decode(bytes: &[u8]) -> Result<Option<(Envelope, usize)>, WireError> {
    let Some((header, body)) = open(bytes)? else { return Ok(None) };
    let envelope: Envelope = unpack(body)?;
    if envelope.cluster != header.cluster {
        return Err(WireError::Cluster { header: header.cluster, envelope: envelope.cluster });
    }
    Ok(Some((envelope, HEADER_SIZE + header.length)))
}

/// Encodes the accepting side's word.
pub fn encode_welcome(cluster: ClusterId, welcome: &Welcome) -> Result<Vec<u8>, WireError> {
    Ok(frame(cluster, &pack(welcome)?))
}

/// Decodes what [`encode_welcome`] made, as [`decode`] does.
pub fn decode_welcome(bytes: &[u8]) -> Result<Option<(Welcome, usize)>, WireError> {
    let Some((header, body)) = open(bytes)? else { return Ok(None) };
    Ok(Some((unpack(body)?, HEADER_SIZE + header.length)))
}

fn frame(cluster: ClusterId, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_SIZE + body.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&PROTOCOL_VERSION.to_le_bytes());
    // pack() has limited the body to MAX_BODY, which fits.
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&cluster.0.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// A whole frame's header and body, the checksum verified.
fn open(bytes: &[u8]) -> Result<Option<(Header, &[u8])>, WireError> {
    let Some(header) = Header::read(bytes)? else { return Ok(None) };
    let Some(body) = bytes.get(HEADER_SIZE..HEADER_SIZE + header.length) else { return Ok(None) };
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..CRC_OFFSET]), body);
    if crc != header.crc {
        return Err(WireError::Checksum);
    }
    Ok(Some((header, body)))
}
