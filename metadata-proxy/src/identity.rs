//! Who asked: the tenant a connection was proved to come from, and the guest's address.
//!
//! An [`Identity`] can only be made here, by a proof that fails closed. Nothing in a request can
//! influence it.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use bytes::BufMut;
use http::{HeaderName, HeaderValue};
use metadata_proxy_common::TenantKind;
use uuid::Uuid;

use crate::{
    kernel::{Kernel, NetnsCookie},
    listener::Caller,
};

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

    /// The same name as Neutron writes it, for the wire.
    #[must_use]
    pub const fn tag_text(&self) -> &'static str {
        match self.kind {
            TenantKind::Router => "X-Neutron-Router-ID",
            TenantKind::Network => "X-Neutron-Network-ID",
            TenantKind::OvnNetwork => "X-OVN-Network-ID",
        }
    }

    /// Value of the header that carries this tenant upstream.
    #[must_use]
    #[expect(
        clippy::missing_panics_doc,
        reason = "a UUID's digits and dashes are a header value"
    )]
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

impl GuestAddress {
    /// Appends the address as text: for requests and lines, of which there are many.
    pub fn write_to(self, out: &mut impl BufMut) {
        match self.0 {
            IpAddr::V4(v4) => {
                for (index, byte) in v4.octets().into_iter().enumerate() {
                    if index > 0 {
                        out.put_u8(b'.');
                    }
                    out.put_slice(itoa::Buffer::new().format(byte).as_bytes());
                }
            }
            IpAddr::V6(v6) => out.put_slice(v6.to_string().as_bytes()),
        }
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

/// Why a connection was refused before a byte of it was read.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// It reached the listener without having dialled the metadata address.
    #[error("the metadata address was not dialled: the connection is to {local}")]
    NotSteered {
        /// Where it was accepted.
        local: SocketAddr,
    },
    /// It was accepted in another namespace than the listener's.
    #[error("accepted in namespace {found}, but the listener is in namespace {expected}")]
    OtherNamespace {
        /// The listener's namespace.
        expected: NetnsCookie,
        /// The connection's namespace.
        found: NetnsCookie,
    },
    /// Its namespace belongs to no tenant.
    #[error("namespace {0} belongs to no tenant")]
    NoTenant(NetnsCookie),
    /// Its namespace belongs to another tenant than its listener.
    #[error("namespace belongs to {found}, but the listener serves {expected}")]
    OtherTenant {
        /// The listener's tenant.
        expected: Tenant,
        /// The tenant the map names.
        found: Tenant,
    },
    /// The kernel did not say what must be known.
    #[error("the kernel cannot be asked: {0}")]
    Unknown(String),
}

impl Refused {
    /// The word for it in metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::NotSteered { .. } => "not_steered",
            Self::OtherNamespace { .. } => "other_namespace",
            Self::NoTenant(_) => "no_tenant",
            Self::OtherTenant { .. } => "other_tenant",
            Self::Unknown(_) => "unknown",
        }
    }

    /// Whether it is for what the map of tenants says, which may not be what we wrote.
    #[must_use]
    pub const fn is_of_the_map(&self) -> bool {
        matches!(self, Self::NoTenant(_) | Self::OtherTenant { .. })
    }
}

impl Identity {
    /// Proves twice, and fails closed, that a connection comes from the tenant of the listener that
    /// accepted it: by the namespace it was accepted in, and by the tenant that `TENANTS` names for
    /// that namespace at this moment.
    ///
    /// # Errors
    /// [`Refused`], in which case nothing of the connection may be read or forwarded.
    pub fn prove(
        caller: &Caller,
        listener: (Tenant, NetnsCookie),
        kernel: &dyn Kernel,
    ) -> Result<Self, Refused> {
        if !caller.dialled_metadata() {
            return Err(Refused::NotSteered {
                local: caller.local,
            });
        }
        belongs(caller.netns, listener, kernel).map(|tenant| Self { tenant })
    }

    /// Says whether a connection of that namespace would be proved, as [`Identity::prove`] would
    /// once it knew that the metadata address was dialled; makes no identity.
    ///
    /// # Errors
    /// [`Refused`] as guests would be.
    pub fn rehearse(
        netns: NetnsCookie,
        listener: (Tenant, NetnsCookie),
        kernel: &dyn Kernel,
    ) -> Result<(), Refused> {
        belongs(netns, listener, kernel).map(drop)
    }

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

/// The tenant of a connection's namespace, if it is the listener's tenant and namespace.
fn belongs(
    netns: NetnsCookie,
    (expected, namespace): (Tenant, NetnsCookie),
    kernel: &dyn Kernel,
) -> Result<Tenant, Refused> {
    if netns != namespace {
        return Err(Refused::OtherNamespace {
            expected: namespace,
            found: netns,
        });
    }
    match kernel.tenant(netns) {
        Ok(Some(found)) if found == expected => Ok(found),
        Ok(Some(found)) => Err(Refused::OtherTenant { expected, found }),
        Ok(None) => Err(Refused::NoTenant(netns)),
        Err(error) => Err(Refused::Unknown(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::fake::FakeKernel;

    const TENANT: Tenant = Tenant {
        kind: TenantKind::Router,
        id: Uuid::from_u128(1),
    };
    const OTHER: Tenant = Tenant {
        kind: TenantKind::Network,
        id: Uuid::from_u128(1),
    };
    const HERE: NetnsCookie = NetnsCookie(7);

    fn caller(local: &str, netns: NetnsCookie) -> Caller {
        Caller {
            peer: "10.0.0.5:40000".parse().unwrap(),
            local: local.parse().unwrap(),
            original: None,
            netns,
        }
    }

    fn prove(caller: &Caller, declared: Option<Tenant>) -> Result<Identity, Refused> {
        let kernel = FakeKernel::default();
        if let Some(tenant) = declared {
            kernel.declare(caller.netns, tenant).unwrap();
        }
        Identity::prove(caller, (TENANT, HERE), &kernel)
    }

    #[test]
    fn a_steered_connection_in_its_own_namespace_is_proved() {
        let identity = prove(&caller("169.254.169.254:80", HERE), Some(TENANT)).unwrap();
        assert_eq!(identity.tenant(), TENANT);
    }

    #[test]
    fn whatever_does_not_fit_is_refused() {
        let steered = caller("169.254.169.254:80", HERE);
        assert!(matches!(
            prove(&steered, None),
            Err(Refused::NoTenant(HERE))
        ));
        assert!(matches!(
            prove(&steered, Some(OTHER)),
            Err(Refused::OtherTenant { .. })
        ));
        let elsewhere = caller("169.254.169.254:80", NetnsCookie(8));
        assert!(matches!(
            prove(&elsewhere, Some(TENANT)),
            Err(Refused::OtherNamespace { .. })
        ));
        let direct = caller("10.0.0.1:9697", HERE);
        assert!(matches!(
            prove(&direct, Some(TENANT)),
            Err(Refused::NotSteered { .. })
        ));
    }

    #[test]
    fn each_kind_has_its_own_tag() {
        let tag = |kind| {
            Tenant {
                kind,
                id: Uuid::nil(),
            }
            .tag_name()
        };
        assert_eq!(tag(TenantKind::Router), "X-Neutron-Router-ID");
        assert_eq!(tag(TenantKind::Network), "X-Neutron-Network-ID");
        assert_eq!(tag(TenantKind::OvnNetwork), "X-OVN-Network-ID");
    }

    #[test]
    fn a_guest_address_is_without_mapping_and_zone() {
        let mapped = GuestAddress::of_peer("[::ffff:10.0.0.5]:1".parse().unwrap());
        assert_eq!(mapped.to_string(), "10.0.0.5");
        let zoned = GuestAddress::of_peer("[fe80::1%3]:1".parse().unwrap());
        assert_eq!(zoned.to_string(), "fe80::1");
    }
}
