//! Calls `multiproc::fuzz::queue_packets`, which says what it checks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| multiproc::fuzz::queue_packets(data));
