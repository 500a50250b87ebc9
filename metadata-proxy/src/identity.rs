//! Who asked: the tenant a connection was proved to come from, and the guest's address.
//!
//! An [`Identity`] can only be made here, by a proof that fails closed. Nothing in a request can
//! influence it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use http::{HeaderName, HeaderValue};
use metadata_proxy_common::TenantKind;
use uuid::Uuid;

/// Names the router whose guests ask; read by Neutron's metadata agent.
pub const ROUTER_TAG: HeaderName = HeaderName::from_static("x-neutron-router-id");
/// Names the network whose guests ask; read by Neutron's metadata agent.
pub const NETWORK_TAG: HeaderName = HeaderName::from_static("x-neutron-network-id");
/// Names the network whose guests ask; read by the OVN metadata agent.
pub const OVN_NETWORK_TAG: HeaderName = HeaderName::from_static("x-ovn-network-id");

/// A router or network whose guests are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tenant {
    /// What it is to Neutron.
    pub kind: TenantKind,
    /// Its UUID in Neutron.
    pub id: Uuid,
}

impl Tenant {
    /// Name of the header that carries this tenant upstream.
    #[must_use]
    pub const fn tag_name(&self) -> HeaderName {
        match self.kind {
            TenantKind::Router => ROUTER_TAG,
            TenantKind::Network => NETWORK_TAG,
            TenantKind::OvnNetwork => OVN_NETWORK_TAG,
        }
    }

    /// Value of the header that carries this tenant upstream.
    #[must_use]
    pub fn tag_value(&self) -> HeaderValue {
        let mut buffer = Uuid::encode_buffer();
        let text: &str = self.id.hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(text).expect("a hyphenated UUID is a header value")
    }

    /// The word for a kind in configuration, logs, metrics and the command line.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        kind_name(self.kind)
    }
}

/// The word for a kind in configuration, logs, metrics and the command line.
#[must_use]
pub const fn kind_name(kind: TenantKind) -> &'static str {
    match kind {
        TenantKind::Router => "router",
        TenantKind::Network => "network",
        TenantKind::OvnNetwork => "ovn-network",
    }
}

/// Parses the word for a kind; `None` for any other word.
#[must_use]
pub fn kind_from_name(name: &str) -> Option<TenantKind> {
    match name {
        "router" => Some(TenantKind::Router),
        "network" => Some(TenantKind::Network),
        "ovn-network" => Some(TenantKind::OvnNetwork),
        _ => None,
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind_name(), self.id)
    }
}

/// A guest's address as upstreams may see it: IPv4-mapped reduced to IPv4, without a zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GuestAddress(IpAddr);

impl GuestAddress {
    /// Takes the address of the peer of an accepted connection.
    #[must_use]
    pub fn of_peer(peer: SocketAddr) -> Self {
        Self(peer.ip().to_canonical())
    }

    /// The address.
    #[must_use]
    pub const fn ip(self) -> IpAddr {
        self.0
    }
}

impl From<IpAddr> for GuestAddress {
    fn from(ip: IpAddr) -> Self {
        Self(ip.to_canonical())
    }
}

impl fmt::Display for GuestAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A tenant that a connection was proved to come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    tenant: Tenant,
}

impl Identity {
    /// Makes an identity without proof, for tests of the steps behind the proof.
    #[cfg(test)]
    #[must_use]
    pub(crate) const fn unproved(tenant: Tenant) -> Self {
        Self { tenant }
    }

    /// The tenant that was proved.
    #[must_use]
    pub const fn tenant(&self) -> Tenant {
        self.tenant
    }
}
