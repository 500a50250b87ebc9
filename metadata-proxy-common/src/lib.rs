//! The contract between the kernel programs and everybody in user space.
//!
//! Everything here is `no_std`, made of integers and byte arrays, and laid out the same on both
//! sides: layouts are asserted at compile time, and [`ABI_VERSION`] travels inside the BPF object so
//! that a loader refuses an object of another version. Byte order ends in the constructors here:
//! whatever goes over the wire is kept in network order as bytes.
//!
//! It must not depend on anything, and must not hold logic beyond encoding and decoding.
#![no_std]
#![warn(unused_crate_dependencies)]

pub mod outcome;
pub mod tenant;

pub use outcome::Outcome;
pub use tenant::{TenantKey, TenantKind, TenantValue};

/// Version of every layout and of every meaning in this crate; a change of either raises it.
pub const ABI_VERSION: u32 = 1;

/// The IPv4 metadata address, 169.254.169.254, in network order.
pub const METADATA_V4: [u8; 4] = [169, 254, 169, 254];

/// The IPv6 metadata address, `fe80::a9fe:a9fe`, in network order (source: Neutron's
/// `METADATA_V6_IP`).
pub const METADATA_V6: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xa9, 0xfe, 0xa9, 0xfe,
];

/// The TCP port guests dial.
pub const METADATA_PORT: u16 = 80;

/// The port the listeners are bound to unless configured otherwise: the one Neutron's `REDIRECT`
/// rule points at.
pub const DEFAULT_LISTENER_PORT: u16 = 9697;

/// The mark Neutron's `INPUT` chain lets through to the listener port; the connect hooks set it on
/// the sockets they rewrite, because those packets never pass `PREROUTING` where Neutron sets it.
pub const NEUTRON_MARK: u32 = 0x1;

/// Names of maps, programs and read-only globals inside the BPF object.
pub mod names {
    /// Hash map from [`TenantKey`](crate::TenantKey) to [`TenantValue`](crate::TenantValue).
    pub const TENANTS: &str = "TENANTS";
    /// Per-CPU array of `u64`, indexed by [`Outcome`](crate::Outcome).
    pub const OUTCOMES: &str = "OUTCOMES";
    /// Map of per-socket records of addresses that processes dialled.
    pub const DIALLED: &str = "DIALLED";
    /// Map of one listening socket, used by the `sk_lookup` engine.
    pub const LISTENERS: &str = "LISTENERS";
    /// TC ingress classifier.
    pub const STEER: &str = "steer";
    /// `sk_lookup` program of the fallback engine.
    pub const LOOKUP: &str = "lookup";
    /// `cgroup/connect4` hook.
    pub const CONNECT4: &str = "connect4";
    /// `cgroup/connect6` hook.
    pub const CONNECT6: &str = "connect6";
    /// `cgroup/getpeername4` hook.
    pub const GETPEERNAME4: &str = "getpeername4";
    /// `cgroup/getpeername6` hook.
    pub const GETPEERNAME6: &str = "getpeername6";
    /// Global: [`ABI_VERSION`](crate::ABI_VERSION) the object was built with.
    pub const ABI: &str = "ABI";
    /// Global: port of the listeners, `u16` in host order.
    pub const LISTENER_PORT: &str = "LISTENER_PORT";
    /// Global: 1 when listeners are IPv4-only sockets (no IPv6 in this kernel), else 0.
    pub const LISTENER_V4_ONLY: &str = "LISTENER_V4_ONLY";
    /// Global: 1 when the programs may write debug log lines, else 0.
    pub const DEBUG_LOG: &str = "DEBUG_LOG";
}
