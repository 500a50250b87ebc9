//! What Neutron says about a tenant: the haproxy configurations that its agents write.
//!
//! This module turns text into [`TenantSettings`]. It opens no file and no socket, so that the
//! haproxy stand-in, which must stay tiny, can use it.

pub mod haproxy_cfg;
mod settings;

pub use settings::{
    AddressFamily, Bind, LogLevel, RateLimit, TenantSettings, Timeouts, UnknownLogLevel, Window,
};
