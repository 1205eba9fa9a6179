//! See [`biha_fuzz::history`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| biha_fuzz::history::run(data));
