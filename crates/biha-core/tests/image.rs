//! Images of the state files: the bytes of version 1 stay readable, and damage is always seen and named.

#![allow(clippy::unwrap_used, reason = "a test")]

mod support;

use biha_core::image::{
    CONFIG_VERSION, ImageError, STATE_VERSION, decode_config, decode_state, encode_config, encode_state,
};
use biha_core::*;
use proptest::collection::vec;
use proptest::prelude::*;
use support::Numbers;

fn state_image() -> Vec<u8> {
    encode_state(&Numbers::counting().state()).unwrap()
}

fn config_image() -> Vec<u8> {
    encode_config(&Numbers::counting().config()).unwrap()
}

fn with_crc(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.len() - 4;
    let crc = crc32c::crc32c(&bytes[..end]);
    bytes[end..].copy_from_slice(&crc.to_le_bytes());
    bytes
}

#[test]
fn golden_images_are_read() {
    support::golden("state-v1", &state_image());
    support::golden("conf-v1", &config_image());
    assert_eq!(decode_state(&support::read_golden("state-v1")), Ok(Numbers::counting().state()));
    assert_eq!(decode_config(&support::read_golden("conf-v1")), Ok(Numbers::counting().config()));
}

#[test]
fn every_cut_is_torn() {
    let (state, config) = (state_image(), config_image());
    for cut in 0..state.len() {
        assert!(matches!(decode_state(&state[..cut]), Err(ImageError::Torn { .. })), "cut at {cut}");
    }
    for cut in 0..config.len() {
        assert!(matches!(decode_config(&config[..cut]), Err(ImageError::Torn { .. })), "cut at {cut}");
    }
    let mut longer = state;
    longer.push(0);
    assert!(matches!(decode_state(&longer), Err(ImageError::Torn { .. })));
}

#[test]
fn every_flipped_bit_is_seen() {
    let image = state_image();
    for bit in 0..image.len() * 8 {
        let mut bad = image.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        let error = decode_state(&bad).expect_err("damage");
        match bit / 8 {
            0..8 => assert_eq!(error, ImageError::Magic),
            10..14 => assert!(matches!(error, ImageError::Torn { .. }), "bit {bit}: {error}"),
            _ => assert_eq!(error, ImageError::Checksum, "bit {bit}"),
        }
    }
}

#[test]
fn a_newer_version_is_not_called_damage() {
    let mut state = state_image();
    state[8..10].copy_from_slice(&(STATE_VERSION + 1).to_le_bytes());
    // Whatever else a newer version changes: its length and its body mean nothing to this one.
    state[10..14].copy_from_slice(&u32::MAX.to_le_bytes());
    let newer = ImageError::Newer { found: STATE_VERSION + 1, known: STATE_VERSION };
    assert_eq!(decode_state(&with_crc(state)), Err(newer));
    let mut config = config_image();
    config[8..10].copy_from_slice(&99u16.to_le_bytes());
    assert_eq!(decode_config(&with_crc(config)), Err(ImageError::Newer { found: 99, known: CONFIG_VERSION }));
}

#[test]
fn one_file_is_not_taken_for_the_other() {
    assert_eq!(decode_state(&config_image()), Err(ImageError::Magic));
    assert_eq!(decode_config(&state_image()), Err(ImageError::Magic));
}

#[test]
fn header_and_body_must_name_one_node() {
    let mut image = state_image();
    image[14] ^= 1;
    assert!(matches!(decode_state(&with_crc(image)), Err(ImageError::Body(_))));
}

#[test]
fn a_state_of_many_elections_is_written() {
    let mut state = Numbers::counting().state();
    let entry = TimelineEntry { term: Term(1), leader: NodeId(1), fork: Lsn(1) };
    state.timelines = (1..50_000).map(|n| (n, entry)).collect();
    let image = encode_state(&state).unwrap();
    assert_eq!(decode_state(&image), Ok(state));
}

proptest! {
    #[test]
    fn images_come_back_as_they_were(numbers in vec(any::<u64>(), 1..64)) {
        let state = Numbers(numbers.clone(), 0).state();
        prop_assert_eq!(decode_state(&encode_state(&state).unwrap()), Ok(state));
        let config = Numbers(numbers, 0).config();
        prop_assert_eq!(decode_config(&encode_config(&config).unwrap()), Ok(config));
    }

    #[test]
    fn no_bytes_panic(magic in 0..3usize, bytes in vec(any::<u8>(), 0..300)) {
        let mut image = [&b""[..], b"BIHASTAT\x01\0", b"BIHACONF\x01\0"][magic].to_vec();
        image.extend_from_slice(&bytes);
        let _ = (decode_state(&image), decode_config(&image));
        if image.len() > 4 {
            let sealed = with_crc(image);
            let _ = (decode_state(&sealed), decode_config(&sealed));
        }
    }
}
