//! Handing everything over to a new process, so that an upgrade resets no connection.
//!
//! The new process ([`take`]) connects to a socket of the running one ([`offer`]). Each message is a
//! packet, with its descriptors (`SOCK_SEQPACKET`, `SCM_RIGHTS`):
//!
//! | new | old | |
//! |---|---|---|
//! | `hello` | `hello` | the protocol of each; on another one both refuse, and nothing has changed |
//! | `give` | `node`, `tenant`…, `end` | from here on the old one changes nothing on the node |
//! | `ready` | | everything is served by the new one, except that it does not accept |
//! | | `windows`…, `commit` | the limiter's windows |
//! | `taken` | | the new one accepts; the old one does not any more, drains and ends |
//!
//! Both processes hold the same listening sockets all the while, so that a connection waits in the
//! socket until either accepts it. Whatever goes wrong before `taken`, the old process goes on as
//! before: it only stops for that message.

mod channel;
mod message;
mod offer;
mod state;
mod take;
#[cfg(test)]
mod tests;

use std::{
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

pub use self::{
    channel::{Channel, ChannelError},
    message::{Message, MessageError, OfferedNode},
    offer::{Offer, OfferError, Question, answer},
    state::State,
    take::{Begun, Committed, Received, TakeError, begin},
};
use crate::{
    identity::Tenant,
    kernel::NetnsCookie,
    netns::NetnsId,
    tenants::{Provider, Source},
};

/// The protocol that this module speaks.
pub const PROTOCOL: u32 = 1;

/// Longest message, bytes.
pub const MESSAGE_LIMIT: usize = 64 * 1024;

/// Most descriptors of one message; the kernel takes 253.
pub const DESCRIPTOR_LIMIT: u32 = 128;

/// Where a running agent offers itself: beside its admin socket.
#[must_use]
pub fn socket_path(admin_socket: &Path) -> PathBuf {
    let mut path = admin_socket.as_os_str().to_owned();
    path.push(".takeover");
    path.into()
}

/// One namespace, as it is handed over.
#[derive(Debug)]
pub struct Handed {
    /// Whose guests are served from it.
    pub tenant: Tenant,
    /// Its cookie, or 0 where nothing is served.
    pub cookie: NetnsCookie,
    /// Which namespace it is.
    pub netns: NetnsId,
    /// What people call it.
    pub name: String,
    /// Its listening sockets.
    pub listeners: Vec<OwnedFd>,
    /// Whether its stand-in ended, so that it is not to be served although its name says so.
    pub is_suspended: bool,
    /// Declarations that no look at the node would find again.
    pub declarations: Vec<HandedDeclaration>,
}

/// A declaration that was made by somebody, and is not to be seen on the node.
#[derive(Debug)]
pub struct HandedDeclaration {
    /// Who made it.
    pub provider: Provider,
    /// The tenant.
    pub tenant: Tenant,
    /// What people call the namespace.
    pub name: String,
    /// How to get hold of the namespace.
    pub source: Source,
    /// How the tenant is served.
    pub settings: Option<crate::neutron::TenantSettings>,
}
