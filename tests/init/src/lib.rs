//! What `cargo xtask vm-test` and the guest it boots say to each other: the manifest that goes in
//! with the initramfs, and the result lines that come back over the console.
//!
//! Both ends use these types, so neither can drift from the other. Nothing in here touches a
//! system.

pub mod manifest;
pub mod report;
