//! A tenant: its namespace as Neutron makes it, and guests behind its device.
//!
//! All tenants have the same addresses, MAC addresses included, unless asked for otherwise: nothing
//! but the namespace tells them apart.

use std::fmt;

use anyhow::{Result, bail};
use uuid::Uuid;

use crate::{
    curl::Reply,
    netns::Netns,
    node::Node,
    subnet::{Guest, Subnet},
};

/// The metadata service as guests know it, over IPv4.
pub const METADATA_V4: &str = "http://169.254.169.254";

/// What a tenant is to Neutron.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A router of the L3 agent.
    Router,
    /// An isolated network, served by the DHCP agent.
    Network,
    /// A network of OVN.
    OvnNetwork,
}

impl Kind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Router, Self::Network, Self::OvnNetwork];

    /// What the names of such namespaces begin with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Router => "qrouter-",
            Self::Network => "qdhcp-",
            Self::OvnNetwork => "ovnmeta-",
        }
    }

    /// The header that carries such a tenant's identity, in lower case.
    #[must_use]
    pub const fn tag_name(self) -> &'static str {
        match self {
            Self::Router => "x-neutron-router-id",
            Self::Network => "x-neutron-network-id",
            Self::OvnNetwork => "x-ovn-network-id",
        }
    }

    /// The word for it in the agent's configuration and output.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Network => "network",
            Self::OvnNetwork => "ovn-network",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// How a tenant is to be made.
#[derive(Clone, Debug)]
pub struct TenantBuilder {
    kind: Kind,
    id: Uuid,
    suffix: String,
    name: Option<String>,
    guests: u8,
}

impl TenantBuilder {
    /// Calls its namespace this, instead of what Neutron would.
    #[must_use]
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Gives it this UUID instead of a random one.
    #[must_use]
    pub const fn id(mut self, id: Uuid) -> Self {
        self.id = id;
        self
    }

    /// Appends to the namespace's name, as the DHCP agent does for a segment.
    #[must_use]
    pub fn suffix(mut self, suffix: &str) -> Self {
        suffix.clone_into(&mut self.suffix);
        self
    }

    /// Gives it this many guests on its first subnet; with none it has no device either.
    #[must_use]
    pub const fn guests(mut self, guests: u8) -> Self {
        self.guests = guests;
        self
    }

    /// Makes it.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn build(self, node: &Node) -> Result<TenantFixture> {
        let name = self
            .name
            .unwrap_or_else(|| format!("{}{}{}", self.kind.prefix(), self.id, self.suffix));
        let netns = Netns::tenant(node, &name)?;
        netns.sysctl("net/ipv4/ip_forward", "1")?;
        netns.sysctl("net/ipv6/conf/all/forwarding", "1")?;
        let mut tenant = TenantFixture {
            kind: self.kind,
            id: self.id,
            subnets: Vec::new(),
            netns,
            node: node.clone(),
        };
        if self.guests > 0 {
            tenant.plug(self.guests)?;
        }
        Ok(tenant)
    }
}

/// A tenant with its guests; everything goes when it is dropped.
#[derive(Debug)]
pub struct TenantFixture {
    /// What it is to Neutron.
    pub kind: Kind,
    /// Its UUID.
    pub id: Uuid,
    /// Its subnets, in the order in which they were plugged.
    pub subnets: Vec<Subnet>,
    /// Its namespace.
    pub netns: Netns,
    node: Node,
}

impl TenantFixture {
    /// Begins a tenant with one guest, a random UUID, and the addresses that all tenants have.
    #[must_use]
    pub fn builder(kind: Kind) -> TenantBuilder {
        TenantBuilder {
            kind,
            id: Uuid::new_v4(),
            suffix: String::new(),
            name: None,
            guests: 1,
        }
    }

    /// Makes a tenant with one guest.
    ///
    /// # Errors
    /// The kernel refused something.
    pub fn new(node: &Node, kind: Kind) -> Result<Self> {
        Self::builder(kind).build(node)
    }

    /// The first guest of the first subnet.
    ///
    /// # Panics
    /// When the tenant was made without guests.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.subnets[0].guests[0]
    }

    /// All guests.
    pub fn guests(&self) -> impl Iterator<Item = &Guest> {
        self.subnets.iter().flat_map(|subnet| &subnet.guests)
    }

    /// Plugs another subnet with this many guests, as when an interface is added to a router.
    ///
    /// # Errors
    /// There are too many already, or the kernel refused something.
    pub fn plug(&mut self, guests: u8) -> Result<&Subnet> {
        let Ok(index) = u8::try_from(self.subnets.len()) else {
            bail!("too many subnets")
        };
        let subnet = Subnet::plug(&self.node, self, index, guests)?;
        self.subnets.push(subnet);
        Ok(&self.subnets[usize::from(index)])
    }

    /// Asks as a process inside the tenant namespace, within the node's cgroup.
    ///
    /// # Errors
    /// curl cannot be run.
    pub fn curl(&self, url: &str, arguments: &[&str]) -> Result<Reply> {
        let mut command = self.netns.command("curl")?;
        self.node.enter_cgroup(&mut command)?;
        crate::curl::curl(&mut command, url, arguments)
    }
}
