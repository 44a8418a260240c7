//! Calls `multiproc::fuzz::ring_answers`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::fuzz::ring_answers(data));
