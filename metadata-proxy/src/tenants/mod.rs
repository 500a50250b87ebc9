//! Tenants: who declared them, what we put into their namespaces, and how each is doing.
//!
//! The registry is one task that owns all of this. It never blocks a worker and never serves a
//! request; workers see of a tenant only its [`Service`].

mod farewells;
mod kept;
mod life;
#[cfg(test)]
mod model;
mod place;
mod probe;
mod registry;
mod repairs;
mod service;

use std::{fmt, os::fd::OwnedFd, path::PathBuf, sync::Arc};

pub use self::{
    farewells::Farewells,
    kept::KeptListeners,
    life::{Backoff, Phase},
    place::{PlaceError, Plan},
    probe::{Fault, Probes, Verdict, Waiting},
    registry::{
        AddError, Command, Giving, HandOver, OnSettled, Registry, RegistryHandle, RegistryParts,
        SettingsOf,
    },
    repairs::Repairs,
    service::{Counters, Service, Settings},
};
use crate::{
    config::InterfaceGlob,
    identity::Tenant,
    netns::{Netns, NetnsError, NetnsId},
};

/// Who declared a tenant; where several declare the same namespace, the later here wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provider {
    /// An entry that somebody else wrote into the `TENANTS` map.
    Map,
    /// The name of the namespace.
    NetnsDir,
    /// The admin API.
    Admin,
    /// The stand-in for haproxy that Neutron starts.
    Register,
}

impl Provider {
    /// The word for it in output.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Map => "map",
            Self::NetnsDir => "netns-dir",
            Self::Admin => "admin",
            Self::Register => "register",
        }
    }
}

/// How to get hold of a tenant namespace until there is a listener in it.
#[derive(Clone, Debug)]
pub enum Source {
    /// By a path that names it.
    Path(PathBuf),
    /// By an open file, which keeps it alive: only while whoever handed it over is in it.
    File(Arc<OwnedFd>),
}

impl Source {
    /// Opens the namespace.
    ///
    /// # Errors
    /// [`NetnsError`].
    pub fn open(&self) -> Result<Netns, NetnsError> {
        match self {
            Self::Path(path) => Netns::open(path),
            Self::File(fd) => {
                let not_one = || NetnsError::NotANamespace {
                    path: PathBuf::from("(handed over)"),
                };
                fd.try_clone()
                    .ok()
                    .and_then(Netns::from_fd)
                    .ok_or_else(not_one)
            }
        }
    }
}

/// That a namespace belongs to a tenant, and how it is to be served.
#[derive(Clone, Debug)]
pub struct Declaration {
    /// Who says so.
    pub provider: Provider,
    /// The tenant.
    pub tenant: Tenant,
    /// What people call the namespace.
    pub name: String,
    /// Which namespace.
    pub netns: NetnsId,
    /// How to get hold of it.
    pub source: Source,
    /// Which interfaces its guests are behind.
    pub interfaces: Vec<InterfaceGlob>,
    /// How it is served, where that differs from the node's configuration.
    pub settings: Option<Arc<crate::neutron::TenantSettings>>,
}

impl fmt::Display for Declaration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} in {} ({})",
            self.tenant,
            self.name,
            self.provider.label()
        )
    }
}
