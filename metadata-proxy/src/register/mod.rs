//! Provider of tenants that register themselves: the haproxy stand-ins that Neutron starts.
//!
//! One registration is one connection on a unix socket of type `SOCK_SEQPACKET`, so that a message
//! is a packet and its descriptors arrive with it. Messages are JSON, and carry the number of the
//! protocol:
//!
//! 1. The client sends a [`Request`] with exactly one descriptor, its network namespace.
//! 2. The server answers `accepted`, and then, as often as it changes, `serving` or `failed` with a
//!    reason ([`Reply`]).
//! 3. The connection is the lease: when the client closes it, or dies, the tenant's service ends.
//!    When the server closes it, the client connects and registers anew.
//!
//! Only root and the server's own user may register. Nothing here serves a tenant: the
//! [`Server`] tells of registrations as [`RegisterEvent`]s and passes the verdict back. A tenant may
//! be registered twice for a moment (its old process is still ending when the new one starts), so
//! whoever takes the events must tell leases apart by [`LeaseId`], the newest being the one meant.

pub mod client;
mod lease;
mod listener;
mod message;
mod server;

#[cfg(test)]
mod tests;

pub use self::{
    lease::{LeaseId, RegisterEvent, Registration, ReplyHandle},
    listener::{Listener, ListenerError},
    message::{Client, MessageError, Reply, Request},
    server::{Limits, Server},
};

/// Where the server listens unless told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/metadata-proxy/register.sock";

/// The protocol that this module speaks.
pub const PROTOCOL: u32 = 1;

/// Longest message that is read, in bytes.
pub const MESSAGE_LIMIT: usize = 64 * 1024;
