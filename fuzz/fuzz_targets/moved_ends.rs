//! Calls `multiproc::fuzz::moved_ends`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::fuzz::moved_ends(data));
