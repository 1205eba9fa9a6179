//! See [`biha_fuzz::channel`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| biha_fuzz::channel::run(data));
