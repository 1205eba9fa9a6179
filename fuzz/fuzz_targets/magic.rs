//! See [`biha_fuzz::magic`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| biha_fuzz::magic::run(data));
