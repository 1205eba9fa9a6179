//! The magic string: all that a new node must be told to join, in one line to be copied.
//!
//! `biha1:` and then, in base64, the packed fields and their crc32c (4 bytes, little-endian). It holds the
//! cluster's secrets: whoever has it can join.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use biha_core::{ClusterId, wire};
use serde::{Deserialize, Serialize};

const NAME: &str = "biha";
const PREFIX: &str = "biha1:";

/// What a node needs to join the cluster.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Magic {
    /// The cluster.
    pub cluster: ClusterId,
    /// Host of the leader's PostgreSQL server when the string was made.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Certificate of the cluster's certificate authority, PEM.
    pub ca_certificate: String,
    /// Its private key, PEM.
    pub ca_key: String,
    /// Password of biha_replication_user.
    pub password: String,
}

/// Why a text is no magic string.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MagicError {
    /// It does not begin as a magic string does.
    #[error("not a biha magic string: it must begin with \"{PREFIX}\"")]
    Prefix,
    /// It was made by another version.
    #[error("magic string of version {0:?} is not supported: this version of biha reads \"{PREFIX}\"")]
    Version(String),
    /// It is incomplete or altered.
    #[error("magic string is damaged: {0}; copy it again, whole")]
    Damaged(String),
    /// It cannot be made from these values.
    #[error("magic string cannot be made: {0}")]
    Encode(String),
}

impl Magic {
    /// The string.
    pub fn encode(&self) -> Result<String, MagicError> {
        let mut bytes = wire::pack(self).map_err(|e| MagicError::Encode(e.to_string()))?;
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Reads a string. White space anywhere in it, as terminals and mail programs insert it, is ignored.
    pub fn decode(text: &str) -> Result<Magic, MagicError> {
        let text: String = text.chars().filter(|c| !c.is_whitespace()).collect();
        let Some(encoded) = text.strip_prefix(PREFIX) else {
            let version = text.strip_prefix(NAME).and_then(|rest| rest.split_once(':'));
            return Err(match version {
                Some((version, _)) if version.bytes().all(|b| b.is_ascii_digit()) && !version.is_empty() => {
                    MagicError::Version(version.to_owned())
                }
                _ => MagicError::Prefix,
            });
        };
        let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|e| MagicError::Damaged(e.to_string()))?;
        let damaged = |why: &str| MagicError::Damaged(why.to_owned());
        let (body, crc) = bytes.split_last_chunk::<4>().ok_or_else(|| damaged("it is too short"))?;
        if crc32c::crc32c(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("its checksum does not match"));
        }
        wire::unpack(body).map_err(|e| MagicError::Damaged(e.to_string()))
    }
}

/// Without the secrets.
impl fmt::Debug for Magic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Magic")
            .field("cluster", &self.cluster)
            .field("host", &self.host)
            .field("port", &self.port)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn magic() -> Magic {
        Magic {
            cluster: ClusterId(0x0123_4567_89ab_cdef),
            host: "db1.example".to_owned(),
            port: 5432,
            ca_certificate: "-----BEGIN CERTIFICATE-----\nAAAA\n".to_owned(),
            ca_key: "-----BEGIN PRIVATE KEY-----\nBBBB\n".to_owned(),
            password: "s3cret".to_owned(),
        }
    }

    /// The form of version 1 never changes.
    const VERSION_1: &str = concat!(
        "biha1:782riWdFIwELAAAAAAAAAGRiMS5leGFtcGxlOBUhAAAAAAAAAC0tLS0tQkVHSU4gQ0VSVElGSUNBVEUtLS0tLQpBQUFBCiEA",
        "AAAAAAAALS0tLS1CRUdJTiBQUklWQVRFIEtFWS0tLS0tCkJCQkIKBgAAAAAAAABzM2NyZXRn4OsS"
    );

    #[test]
    fn comes_back_as_it_was() {
        let text = magic().encode().unwrap();
        assert_eq!(text, VERSION_1);
        assert_eq!(Magic::decode(VERSION_1), Ok(magic()));
        let (first, last) = text.split_at(30);
        assert_eq!(Magic::decode(&format!("  {first}\r\n   {last}\n")), Ok(magic()));
    }

    #[test]
    fn says_what_is_wrong() {
        assert_eq!(Magic::decode(""), Err(MagicError::Prefix));
        assert_eq!(Magic::decode("postgres://x"), Err(MagicError::Prefix));
        assert_eq!(Magic::decode("biha2:AAAA"), Err(MagicError::Version("2".to_owned())));
        assert!(matches!(Magic::decode("biha1:"), Err(MagicError::Damaged(_))));
        assert!(matches!(Magic::decode("biha1:?"), Err(MagicError::Damaged(_))));
    }

    #[test]
    fn every_cut_and_every_changed_letter_is_seen() {
        for cut in PREFIX.len()..VERSION_1.len() {
            assert!(matches!(Magic::decode(&VERSION_1[..cut]), Err(MagicError::Damaged(_))), "cut at {cut}");
        }
        for at in PREFIX.len()..VERSION_1.len() {
            let mut text = VERSION_1.to_owned();
            let other = if &text[at..=at] == "A" { "B" } else { "A" };
            text.replace_range(at..=at, other);
            assert!(matches!(Magic::decode(&text), Err(MagicError::Damaged(_))), "letter {at}");
        }
    }

    #[test]
    fn debug_shows_no_secret() {
        let text = format!("{:?}", magic());
        assert!(text.contains("db1.example") && !text.contains("s3cret") && !text.contains("BBBB"), "{text}");
    }
}
