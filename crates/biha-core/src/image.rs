//! What a state file holds, as bytes: `biha.state` and `biha.conf`. One of the two files that know the codec
//! (the other is [`crate::wire`]). Reading and writing the files themselves is biha-io's.
//!
//! Integers are little-endian:
//!
//! | size | what |
//! |---|---|
//! | 8 | `BIHASTAT` or `BIHACONF` |
//! | 2 | format version |
//! | 4 | length of the body in bytes |
//! | 20 | biha.state only: cluster id (8), system identifier (8), node id (4) |
//! | | body |
//! | 4 | crc32c of everything before it |
//!
//! Magic, version, and the crc at the end are the same in every version, so that a file of a newer version
//! can be told from a damaged one.

use serde::{Serialize, de::DeserializeOwned};

use crate::{ClusterConfig, ClusterId, HardState, NodeId};

/// Version of the format of `biha.state` that is written.
pub const STATE_VERSION: u16 = 1;
/// Version of the format of `biha.conf` that is written.
pub const CONFIG_VERSION: u16 = 1;
/// Largest body in bytes.
pub const MAX_IMAGE_BODY: usize = 4 * 1024 * 1024;

const STATE_MAGIC: [u8; 8] = *b"BIHASTAT";
const CONFIG_MAGIC: [u8; 8] = *b"BIHACONF";
const IDENTITY_SIZE: usize = 20;

fn codec() -> impl bincode::config::Config {
    bincode::config::standard().with_little_endian().with_fixed_int_encoding().with_limit::<MAX_IMAGE_BODY>()
}

/// Why bytes are not the image of a state file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImageError {
    /// Shorter or longer than its header says, or too short to have one: a torn write.
    #[error("the file is torn: {found} bytes where at least {expected} were expected")]
    Torn {
        /// Bytes there are.
        found: usize,
        /// Bytes there should be.
        expected: usize,
    },
    /// Begins with something else.
    #[error("the file does not begin as it should: it is not biha's, or of another kind")]
    Magic,
    /// Some bytes are not those that were written.
    #[error("the file is corrupt: its checksum does not match")]
    Checksum,
    /// Written by a newer version of biha.
    #[error("the file has format version {found}, this version of biha reads up to {known}")]
    Newer {
        /// The file's version.
        found: u16,
        /// The newest known version.
        known: u16,
    },
    /// The checksum is right but the content makes no sense.
    #[error("the file is corrupt: {0}")]
    Body(String),
    /// Too large to be written.
    #[error("a body of {0} bytes exceeds the limit of {MAX_IMAGE_BODY} bytes")]
    TooLarge(usize),
}

/// The content of `biha.state` for this state.
pub fn encode_state(state: &HardState) -> Result<Vec<u8>, ImageError> {
    seal(STATE_MAGIC, STATE_VERSION, &identity(state), state)
}

/// Reads what [`encode_state`] made.
pub fn decode_state(bytes: &[u8]) -> Result<HardState, ImageError> {
    let (head, body) = unseal(STATE_MAGIC, STATE_VERSION, IDENTITY_SIZE, bytes)?;
    let state: HardState = unpack(body)?;
    if head != identity(&state) {
        return Err(ImageError::Body("header and body name different nodes".to_owned()));
    }
    Ok(state)
}

/// The content of `biha.conf` for this configuration.
pub fn encode_config(config: &ClusterConfig) -> Result<Vec<u8>, ImageError> {
    seal(CONFIG_MAGIC, CONFIG_VERSION, &[], config)
}

/// Reads what [`encode_config`] made.
pub fn decode_config(bytes: &[u8]) -> Result<ClusterConfig, ImageError> {
    let (_, body) = unseal(CONFIG_MAGIC, CONFIG_VERSION, 0, bytes)?;
    unpack(body)
}

fn identity(state: &HardState) -> [u8; IDENTITY_SIZE] {
    let ClusterId(cluster) = state.cluster;
    let NodeId(node) = state.node;
    let mut bytes = [0; IDENTITY_SIZE];
    bytes[..8].copy_from_slice(&cluster.to_le_bytes());
    bytes[8..16].copy_from_slice(&state.system_identifier.to_le_bytes());
    bytes[16..].copy_from_slice(&node.to_le_bytes());
    bytes
}

fn seal<T: Serialize>(magic: [u8; 8], version: u16, head: &[u8], value: &T) -> Result<Vec<u8>, ImageError> {
    let body = bincode::serde::encode_to_vec(value, codec()).map_err(|e| ImageError::Body(e.to_string()))?;
    if body.len() > MAX_IMAGE_BODY {
        return Err(ImageError::TooLarge(body.len()));
    }
    let mut bytes = Vec::with_capacity(18 + head.len() + body.len());
    bytes.extend_from_slice(&magic);
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(head);
    bytes.extend_from_slice(&body);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// Splits an image into the head after the common header, and the body.
fn unseal(magic: [u8; 8], known: u16, head_size: usize, bytes: &[u8]) -> Result<(&[u8], &[u8]), ImageError> {
    let fixed = 8 + 2 + 4 + head_size;
    let torn = |expected| ImageError::Torn { found: bytes.len(), expected };
    let (found_magic, rest) = bytes.split_first_chunk::<8>().ok_or_else(|| torn(fixed + 4))?;
    if *found_magic != magic {
        return Err(ImageError::Magic);
    }
    let (version, rest) = rest.split_first_chunk::<2>().ok_or_else(|| torn(fixed + 4))?;
    let (content, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| torn(fixed + 4))?;
    let intact = crc32c::crc32c(content) == u32::from_le_bytes(*crc);
    let found = u16::from_le_bytes(*version);
    if intact && found > known {
        return Err(ImageError::Newer { found, known });
    }
    let (length, _) = rest.split_first_chunk::<4>().ok_or_else(|| torn(fixed + 4))?;
    let expected = fixed.saturating_add(u32::from_le_bytes(*length) as usize).saturating_add(4);
    if !intact {
        return Err(if bytes.len() == expected { ImageError::Checksum } else { torn(expected) });
    }
    if found == 0 {
        return Err(ImageError::Body("format version 0".to_owned()));
    }
    if bytes.len() != expected {
        return Err(torn(expected));
    }
    Ok(content[fixed - head_size..].split_at(head_size))
}

fn unpack<T: DeserializeOwned>(body: &[u8]) -> Result<T, ImageError> {
    let (value, used) =
        bincode::serde::decode_from_slice(body, codec()).map_err(|e| ImageError::Body(e.to_string()))?;
    if used != body.len() {
        return Err(ImageError::Body(format!("{} bytes left over", body.len() - used)));
    }
    Ok(value)
}
