//! See `src/haproxy_cfg.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| metadata_proxy_fuzz::haproxy_cfg(data));
