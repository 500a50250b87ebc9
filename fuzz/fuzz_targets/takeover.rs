//! See `src/takeover.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metadata_proxy_fuzz::takeover(data));
