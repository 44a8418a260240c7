//! Calls `multiproc::wire::fuzz::worker_messages`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::wire::fuzz::worker_messages(data));
