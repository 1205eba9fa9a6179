//! See [`biha_fuzz::frame`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| biha_fuzz::frame::run(data));
