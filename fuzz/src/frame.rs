//! Frames ([`biha_core::wire`]): as they are, and with a header and a checksum that are right, so that the
//! body is read.

use biha_core::wire::{self, HEADER_SIZE, MAX_BODY, MAX_FRAME, PROTOCOL_VERSION};
use biha_core::{ClusterId, Envelope};

use crate::input::{Input, flipped};

/// The target.
pub fn run(data: &[u8]) {
    check(data);
    let mut input = Input(data);
    let cluster = u64::from(input.byte());
    let choice = input.u32();
    // The envelope begins with its cluster.
    let body = [&cluster.to_le_bytes(), input.bytes(MAX_BODY - 8)].concat();
    let framed = frame(PROTOCOL_VERSION, body.len() as u32, cluster, &body);
    check(&framed);
    if wire::decode(&framed).is_ok_and(|found| found.is_some()) {
        for cut in [0, 9, HEADER_SIZE, framed.len() - 1] {
            assert_eq!(wire::decode(&framed[..cut]), Ok(None), "cut at {cut}");
        }
        let (damaged, at) = flipped(&framed, choice);
        let longer = (6..10).contains(&at) && damaged[6..10] > framed[6..10];
        assert!(longer || wire::decode(&damaged).is_err(), "a flipped bit in byte {at}");
    }
}

/// A frame with this header, right or not, whose checksum is right.
pub(crate) fn frame(version: u16, length: u32, cluster: u64, body: &[u8]) -> Vec<u8> {
    let mut bytes = b"BIHA".to_vec();
    bytes.extend_from_slice(&version.to_le_bytes());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&cluster.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), body);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// What is read can be written, and is then read as the same, in whatever way it was written first.
fn check(bytes: &[u8]) {
    if let Ok(Some((envelope, used))) = wire::decode(bytes) {
        assert!(used <= bytes.len() && (HEADER_SIZE..=MAX_FRAME).contains(&used));
        let again = wire::encode(&envelope).expect("what was decoded is small enough");
        assert_eq!(wire::decode(&again), Ok(Some((envelope, again.len()))));
    }
    if let Ok(Some((welcome, used))) = wire::decode_welcome(bytes) {
        let again = wire::encode_welcome(ClusterId(1), &welcome).expect("small");
        assert!(used <= bytes.len());
        assert_eq!(wire::decode_welcome(&again), Ok(Some((welcome, again.len()))));
    }
    // Without a frame, as other parts of biha use the codec.
    let _ = wire::unpack::<Envelope>(bytes);
}
