//! Calls `multiproc::wire::fuzz::codec_roundtrip`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::wire::fuzz::codec_roundtrip(data));
