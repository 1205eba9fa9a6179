//! See [`biha_fuzz::statefile`].
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| biha_fuzz::statefile::run(data));
