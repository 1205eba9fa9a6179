//! `biha.state` and `biha.conf`: images as they are, and with a header and a checksum that are right; a part
//! of them through the files.

use std::fs;
use std::sync::OnceLock;

use biha_core::image::{self, ImageError};
use biha_core::{ClusterId, NodeId};
use biha_io::{Identity, LoadError, StateFiles};
use tempfile::TempDir;

use crate::input::{Input, flipped, with_crc};

const IDENTITY: Identity = Identity { cluster: Some(ClusterId(1)), system_identifier: 2, node: NodeId(3) };

/// The target.
pub fn run(data: &[u8]) {
    check(data);
    let mut input = Input(data);
    let choice = input.u32();
    let (state, config) = if choice & 1 == 0 { sealed(&mut input) } else { right(&mut input) };
    for image in [&state, &config] {
        check(image);
        let (damaged, at) = flipped(image, choice);
        assert!(image::decode_state(&damaged).is_err(), "a flipped bit in byte {at}");
        assert!(image::decode_config(&damaged).is_err(), "a flipped bit in byte {at}");
    }
    if choice & 2 != 0 {
        through_files(&state, &config);
    }
}

/// Right checksums over anything: version and length as the input says.
fn sealed(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    let head = [&input.u16().to_le_bytes()[..], &input.u32().to_le_bytes()].concat();
    let rest = input.bytes(usize::MAX);
    let image = |magic: &[u8]| with_crc([magic, &head, rest].concat());
    (image(b"BIHASTAT"), image(b"BIHACONF"))
}

/// Right headers, too: the body is read.
fn right(input: &mut Input<'_>) -> (Vec<u8>, Vec<u8>) {
    // What header and body both say.
    let identity = [&1u64.to_le_bytes()[..], &2u64.to_le_bytes(), &3u32.to_le_bytes()].concat();
    let rest = input.bytes(usize::MAX);
    let body = [&identity, rest].concat();
    let length = |body: &[u8]| (body.len() as u32).to_le_bytes();
    let state = [b"BIHASTAT\x01\0", &length(&body)[..], &identity, &body].concat();
    let config = [b"BIHACONF\x01\0", &length(rest)[..], rest].concat();
    (with_crc(state), with_crc(config))
}

fn check(bytes: &[u8]) {
    if let Ok(state) = image::decode_state(bytes) {
        let again = image::encode_state(&state).expect("what was decoded can be encoded");
        assert_eq!(image::decode_state(&again), Ok(state));
    }
    match image::decode_config(bytes) {
        Ok(config) => {
            let again = image::encode_config(&config).expect("what was decoded can be encoded");
            // What the rest of biha asks of any configuration.
            let _ = (config.nquorum(), config.minnodes(), config.lossless(), config.settings.lease());
            assert_eq!(image::decode_config(&again), Ok(config));
        }
        Err(ImageError::Newer { found, known }) => assert!(found > known),
        Err(_) => {}
    }
}

/// Files hold what images hold, and another node's are told apart.
fn through_files(state: &[u8], config: &[u8]) {
    static DIRECTORY: OnceLock<TempDir> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(crate::scratch).path();
    let files = StateFiles::new(directory);
    fs::write(directory.join("biha.state"), state).expect("written");
    fs::write(directory.join("biha.conf"), config).expect("written");
    match (files.load_state(&IDENTITY), image::decode_state(state)) {
        (Ok(loaded), Ok(state)) => assert_eq!(loaded, state),
        (Err(LoadError::Foreign { .. }), Ok(state)) => {
            let found = (state.cluster, state.system_identifier, state.node);
            assert_ne!(found, (ClusterId(1), 2, NodeId(3)));
        }
        (Err(LoadError::Damaged { .. } | LoadError::Newer { .. }), Err(_)) => {}
        (loaded, decoded) => panic!("{loaded:?}, but {decoded:?}"),
    }
    assert_eq!(files.load_config().ok(), image::decode_config(config).ok());
}
