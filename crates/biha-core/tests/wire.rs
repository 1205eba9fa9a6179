//! Frames: the bytes of version 1 stay what they are, and no bytes can harm the decoder.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use biha_core::wire::{self, HEADER_SIZE, Header, MAX_BODY, Welcome, WireError};
use biha_core::*;
use proptest::collection::vec;
use proptest::prelude::*;
use support::Numbers;

fn frames(numbers: &mut Numbers) -> Vec<(Envelope, Vec<u8>)> {
    let messages = numbers.messages();
    let pair = |message| {
        let envelope = numbers.envelope(message);
        let bytes = wire::encode(&envelope).unwrap();
        (envelope, bytes)
    };
    messages.into_iter().map(pair).collect()
}

#[test]
fn every_kind_has_its_golden_frame() {
    for (envelope, bytes) in frames(&mut Numbers::counting()) {
        let name = format!("wire-v1-{}", support::kind(&envelope.message));
        support::golden(&name, &bytes);
        let old = support::read_golden(&name);
        assert_eq!(wire::decode(&old), Ok(Some((envelope, old.len()))), "{name}");
    }
}

#[test]
fn welcome_has_its_golden_frame() {
    let welcome = Welcome { node: NodeId(3), incarnation: Incarnation(77), tag: 5 };
    let bytes = wire::encode_welcome(ClusterId(0x1122_3344_5566_7788), &welcome).unwrap();
    support::golden("wire-v1-welcome", &bytes);
    assert_eq!(wire::decode_welcome(&bytes), Ok(Some((welcome, bytes.len()))));
}

#[test]
fn every_cut_asks_for_more() {
    for (envelope, bytes) in frames(&mut Numbers::counting()) {
        for cut in 0..bytes.len() {
            let kind = support::kind(&envelope.message);
            assert_eq!(wire::decode(&bytes[..cut]), Ok(None), "{kind} cut at {cut}");
        }
    }
}

#[test]
fn every_flipped_bit_is_seen() {
    for (envelope, bytes) in frames(&mut Numbers::counting()) {
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if (6..10).contains(&(bit / 8)) {
                // A longer length asks for bytes that will not match the checksum once they come.
                bad.resize(bytes.len() + MAX_BODY, 0);
            }
            let result = wire::decode(&bad);
            assert!(result.is_err(), "{} bit {bit}: {result:?}", support::kind(&envelope.message));
        }
    }
}

#[test]
fn too_large_a_length_is_refused_before_the_body_comes() {
    let (_, mut bytes) = frames(&mut Numbers::counting()).remove(0);
    bytes[6..10].copy_from_slice(&(MAX_BODY as u32 + 1).to_le_bytes());
    assert_eq!(wire::decode(&bytes[..10]), Err(WireError::TooLarge(MAX_BODY + 1)));
    bytes[6..10].copy_from_slice(&u32::MAX.to_le_bytes());
    assert_eq!(wire::decode(&bytes), Err(WireError::TooLarge(u32::MAX as usize)));
}

#[test]
fn too_large_a_message_is_not_encoded() {
    let mut numbers = Numbers::counting();
    let error = CommandError::Failed("x".repeat(MAX_BODY));
    let envelope = numbers.envelope(Message::ForwardReply { request: 1, result: Err(error) });
    assert!(matches!(wire::encode(&envelope), Err(WireError::TooLarge(_))));
}

#[test]
fn another_version_is_named() {
    let (_, mut bytes) = frames(&mut Numbers::counting()).remove(0);
    bytes[4..6].copy_from_slice(&2u16.to_le_bytes());
    assert_eq!(wire::decode(&bytes[..6]), Err(WireError::Version(2)));
}

#[test]
fn other_protocols_are_seen_at_once() {
    for other in [&b"G"[..], b"\x16\x03\x01", b"\0\0\0\x08\x04\xd2\x16\x2f"] {
        assert_eq!(wire::decode(other), Err(WireError::Magic));
    }
}

#[test]
fn header_and_envelope_must_name_one_cluster() {
    let mut numbers = Numbers::counting();
    let message = Message::Goodbye(Goodbye::Fault);
    let envelope = numbers.envelope(message);
    let mut bytes = wire::encode(&envelope).unwrap();
    bytes[10..18].copy_from_slice(&9u64.to_le_bytes());
    let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..18]), &bytes[HEADER_SIZE..]);
    bytes[18..22].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Header::read(&bytes).unwrap().unwrap().cluster, ClusterId(9));
    let expected = WireError::Cluster { header: ClusterId(9), envelope: envelope.cluster };
    assert_eq!(wire::decode(&bytes), Err(expected));
}

#[test]
fn a_lying_length_inside_the_body_allocates_nothing() {
    // The text, which comes last, claims to be 2^60 bytes long.
    let reply = Message::ForwardReply { request: 1, result: Err(CommandError::Failed(String::new())) };
    let mut body = wire::pack(&Numbers::counting().envelope(reply)).unwrap();
    let end = body.len();
    body[end - 8..].copy_from_slice(&(1u64 << 60).to_le_bytes());
    assert!(matches!(wire::unpack::<Envelope>(&body), Err(WireError::Body(_))));
}

proptest! {
    #[test]
    fn frames_come_back_as_they_were(numbers in vec(any::<u64>(), 1..64), rest in vec(any::<u8>(), 0..40)) {
        for (envelope, mut bytes) in frames(&mut Numbers(numbers, 0)) {
            let size = bytes.len();
            bytes.extend_from_slice(&rest);
            prop_assert_eq!(wire::decode(&bytes), Ok(Some((envelope, size))));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400)) {
        let _ = wire::decode(&bytes);
        let _ = wire::unpack::<Envelope>(&bytes);
        let mut framed = b"BIHA\x01\0".to_vec();
        framed.extend_from_slice(&bytes);
        let _ = wire::decode(&framed);
        let _ = wire::decode_welcome(&framed);
    }
}
