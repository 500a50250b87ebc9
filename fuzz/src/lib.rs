//! What the fuzz targets do with their bytes, as plain functions: each panics if something does not
//! hold. `cargo xtask fuzz` builds and runs them; a past finding stays in `corpus/`.
//!
//! One file for each target here, and one of the same name in `fuzz_targets/` that hands it to
//! libFuzzer.

mod admin;
mod configuration;
mod haproxy_cfg;
mod netns;
mod reader;
mod register;
mod request;
mod steer;
mod takeover;

pub use self::{
    admin::admin, configuration::configuration, haproxy_cfg::haproxy_cfg, register::register,
    request::request, steer::steer, takeover::takeover,
};
