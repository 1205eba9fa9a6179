//! Magic strings ([`biha_io::Magic`]): any text, and any content with a right checksum.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use biha_io::Magic;

use crate::input::{Input, flipped, with_crc};

/// The target.
pub fn run(data: &[u8]) {
    check(&String::from_utf8_lossy(data));
    let mut input = Input(data);
    let choice = input.u32();
    let content = with_crc(input.bytes(usize::MAX).to_vec());
    let text = format!("biha1:{}", URL_SAFE_NO_PAD.encode(&content));
    check(&text);
    let (damaged, at) = flipped(&content, choice);
    let damaged = format!("biha1:{}", URL_SAFE_NO_PAD.encode(damaged));
    assert!(Magic::decode(&damaged).is_err(), "a flipped bit in byte {at}");
}

fn check(text: &str) {
    if let Ok(magic) = Magic::decode(text) {
        let again = magic.encode().expect("what was decoded can be encoded");
        assert_eq!(Magic::decode(&again), Ok(magic));
    }
}
