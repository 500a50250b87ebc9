//! Layout of the `TENANTS` map: which network namespace belongs to which tenant.
//!
//! Whoever wants to declare tenants writes this map; the layout is documented in ARCHITECTURE.md in
//! a form that `bpftool map update` accepts.

/// What a tenant is to Neutron; decides the header that tags its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum TenantKind {
    /// A router: `X-Neutron-Router-ID`.
    Router = 1,
    /// A network served by the DHCP agent: `X-Neutron-Network-ID`.
    Network = 2,
    /// A network served by the OVN metadata agent: `X-OVN-Network-ID`.
    OvnNetwork = 3,
}

impl TenantKind {
    /// Decodes the byte used in [`TenantValue`]; `None` for a byte no kind has.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Router),
            2 => Some(Self::Network),
            3 => Some(Self::OvnNetwork),
            _ => None,
        }
    }
}

/// Key of `TENANTS`: the cookie the kernel gave a network namespace.
///
/// Never reused while the kernel runs. Source: `SO_NETNS_COOKIE` (Linux 5.14) in user space,
/// `bpf_get_netns_cookie` in the connect hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct TenantKey {
    /// The cookie, as the kernel returns it: an opaque number in the machine's own byte order.
    pub netns_cookie: u64,
}

/// Value of `TENANTS`: the tenant a namespace belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TenantValue {
    /// UUID of the router or network, in the order in which it is written.
    pub uuid: [u8; 16],
    /// A [`TenantKind`] as its byte.
    pub kind: u8,
    /// [`WRITER_AGENT`] if the agent wrote the entry, [`WRITER_OTHER`] if somebody else did: the
    /// agent serves both, and removes only its own.
    pub writer: u8,
    /// Zero.
    pub padding: [u8; 6],
}

/// [`TenantValue::writer`] of an entry that the agent wrote.
pub const WRITER_AGENT: u8 = 1;
/// [`TenantValue::writer`] of an entry that somebody else wrote.
pub const WRITER_OTHER: u8 = 0;

impl TenantValue {
    /// Encodes a tenant as the agent declares it.
    #[must_use]
    pub const fn by_agent(kind: TenantKind, uuid: [u8; 16]) -> Self {
        Self {
            uuid,
            kind: kind as u8,
            writer: WRITER_AGENT,
            padding: [0; 6],
        }
    }

    /// Whether the agent wrote this entry.
    #[must_use]
    pub const fn is_of_agent(&self) -> bool {
        self.writer == WRITER_AGENT
    }
}

const _: () = assert!(size_of::<TenantKey>() == 8 && align_of::<TenantKey>() == 8);
const _: () = assert!(size_of::<TenantValue>() == 24 && align_of::<TenantValue>() == 1);
