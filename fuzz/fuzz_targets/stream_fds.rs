//! Calls `multiproc::fuzz::stream_fds`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::fuzz::stream_fds(data));
