//! What the agent was told: TOML file, environment and flags, in rising order.
//!
//! [`Config`] holds valid values only and is made here alone, by [`Config::load`], which tells
//! every problem at once. Nothing here looks at the node: whether what is configured is there is
//! `check`'s question.

mod check;
mod defaults;
mod discovery;
mod document;
mod problem;
mod raw;
pub mod settings;
mod sources;
#[cfg(test)]
mod tests;
mod valid;
mod values;
mod words;

use std::{path::PathBuf, time::Duration};

use metadata_proxy_common::TenantKind;
use serde::{Serialize, Serializer, ser::SerializeStruct as _};

pub(crate) use self::words::words;
pub use self::{
    discovery::{Pattern, PatternError, Recognised},
    problem::{ConfigErrors, Origin, Problem},
    sources::{ConfigSources, DEFAULT_FILE, FILE_VARIABLE, Loaded, Override},
    values::{AddressError, GlobError, HttpAddress, InterfaceGlob, IpVersions},
    words::{EngineChoice, LogFormat, Seccomp, UpstreamKind},
};

/// The whole configuration, valid. Serializes to a file that says the same.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Config {
    /// Threads that serve connections; 0 for one per CPU.
    pub workers: usize,
    /// The listeners.
    pub listener: ListenerConfig,
    /// How connections are brought to them.
    pub steering: SteeringConfig,
    /// How tenants are found.
    pub discovery: DiscoveryConfig,
    /// How often it is made sure that each tenant is served.
    pub audit: AuditConfig,
    /// Behind which interfaces guests are, by kind of tenant.
    pub interfaces: InterfacesConfig,
    /// Who answers.
    pub upstream: UpstreamConfig,
    /// Requests that wait for the upstream.
    pub queue: QueueConfig,
    /// How long anything may take.
    pub timeouts: TimeoutsConfig,
    /// How much anyone may take.
    pub limits: LimitsConfig,
    /// How often a guest may ask.
    pub rate_limit: RateLimitConfig,
    /// The agent's own sockets.
    pub admin: AdminConfig,
    /// What is logged, and how.
    pub log: LogConfig,
    /// What the process gives up once it has started.
    pub security: SecurityConfig,
    /// How it ends.
    pub shutdown: ShutdownConfig,
}

/// The listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ListenerConfig {
    /// The port of all of them.
    pub port: u16,
}

/// How connections are brought to the listeners.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SteeringConfig {
    /// Which engine.
    pub engine: EngineChoice,
    /// Whether processes inside tenant namespaces are served through connect hooks.
    pub connect_hooks: bool,
    /// The cgroup (v2) the hooks are attached to; `None` for the root, wherever it is mounted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<PathBuf>,
    /// Directory on bpffs where maps and links are pinned.
    pub bpffs_dir: PathBuf,
    /// Size of the map of tenants.
    pub max_tenants: u32,
    /// Whether the kernel is asked for short grace periods while a device is attached to.
    pub rcu_expedited: bool,
    /// Whether the kernel programs write debug lines.
    pub debug_log: bool,
}

/// How tenants are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DiscoveryConfig {
    /// The directory of named network namespaces.
    pub netns_dir: PathBuf,
    /// Time between two scans; one looks at every name only if something may have changed.
    #[serde(with = "humantime_serde")]
    pub scan_interval: Duration,
    /// Whether the names Neutron gives namespaces are recognised.
    pub neutron: bool,
    /// First wait before a tenant that failed is tried again.
    #[serde(with = "humantime_serde")]
    pub retry_min: Duration,
    /// Longest wait before a tenant that failed is tried again.
    #[serde(with = "humantime_serde")]
    pub retry_max: Duration,
    /// Further names of tenant namespaces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub patterns: Vec<Pattern>,
}

/// How often it is made sure that each tenant is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct AuditConfig {
    /// Time within which every tenant is looked at.
    #[serde(with = "humantime_serde")]
    pub interval: Duration,
    /// Time within which every tenant's service is proved by a connection.
    #[serde(with = "humantime_serde")]
    pub connect_interval: Duration,
}

/// Behind which interfaces guests are, by kind of tenant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InterfacesConfig {
    /// In router namespaces.
    pub router: Vec<InterfaceGlob>,
    /// In network namespaces of the DHCP agent.
    pub network: Vec<InterfaceGlob>,
    /// In network namespaces of the OVN metadata agent.
    #[serde(rename = "ovn-network")]
    pub ovn_network: Vec<InterfaceGlob>,
}

impl InterfacesConfig {
    /// Those of a kind of tenant.
    #[must_use]
    pub fn of(&self, kind: TenantKind) -> &[InterfaceGlob] {
        match kind {
            TenantKind::Router => &self.router,
            TenantKind::Network => &self.network,
            TenantKind::OvnNetwork => &self.ovn_network,
        }
    }
}

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamConfig {
    /// Neutron's metadata agent.
    Agent(AgentConfig),
    /// An HTTP endpoint.
    Http(HttpConfig),
    /// This process, from a file.
    Embedded(EmbeddedConfig),
}

impl UpstreamConfig {
    /// Which of them.
    #[must_use]
    pub const fn kind(&self) -> UpstreamKind {
        match self {
            Self::Agent(_) => UpstreamKind::Agent,
            Self::Http(_) => UpstreamKind::Http,
            Self::Embedded(_) => UpstreamKind::Embedded,
        }
    }

    /// Where it is, for people: a path or an address.
    #[must_use]
    pub fn place(&self) -> String {
        match self {
            Self::Agent(agent) => agent.socket.display().to_string(),
            Self::Http(http) => http.address.to_string(),
            Self::Embedded(embedded) => embedded.file.display().to_string(),
        }
    }
}

impl Serialize for UpstreamConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let kind = self.kind();
        let mut upstream = serializer.serialize_struct("UpstreamConfig", 2)?;
        upstream.serialize_field("kind", &kind)?;
        match self {
            Self::Agent(agent) => upstream.serialize_field("agent", agent)?,
            Self::Http(http) => upstream.serialize_field("http", http)?,
            Self::Embedded(embedded) => upstream.serialize_field("embedded", embedded)?,
        }
        upstream.end()
    }
}

/// Neutron's metadata agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AgentConfig {
    /// Its unix socket.
    pub socket: PathBuf,
    /// What it reads of one request, bytes.
    pub max_request_bytes: usize,
}

impl Default for AgentConfig {
    fn default() -> Self {
        Self {
            socket: PathBuf::from("/var/lib/neutron/metadata_proxy"),
            max_request_bytes: 4096,
        }
    }
}

/// An HTTP endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpConfig {
    /// Where it is.
    pub address: HttpAddress,
    /// How many idle connections each worker keeps.
    pub pool_size: usize,
}

impl HttpConfig {
    /// The default of [`HttpConfig::pool_size`].
    pub const POOL_SIZE: usize = 64;
}

/// This process, from a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EmbeddedConfig {
    /// The file of instances.
    pub file: PathBuf,
}

/// Requests that wait for the upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct QueueConfig {
    /// Requests the upstream is given at once; 0 to adapt to it.
    pub max_in_flight: usize,
    /// Requests that may wait.
    pub max_waiting: usize,
    /// Requests of one tenant that may wait.
    pub max_waiting_per_tenant: usize,
}

/// How long anything may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TimeoutsConfig {
    /// For a guest to send a request's head.
    #[serde(with = "humantime_serde")]
    pub request_head: Duration,
    /// For a guest to send a request's whole body.
    #[serde(with = "humantime_serde")]
    pub request_body: Duration,
    /// To connect to the upstream.
    #[serde(with = "humantime_serde")]
    pub connect: Duration,
    /// For a guest to send or take the next bytes.
    #[serde(with = "humantime_serde")]
    pub client: Duration,
    /// For the upstream to answer.
    #[serde(with = "humantime_serde")]
    pub server: Duration,
    /// How long a guest's idle connection is kept.
    #[serde(with = "humantime_serde")]
    pub keep_alive: Duration,
}

/// How much anyone may take.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LimitsConfig {
    /// Largest head of a request, bytes.
    pub head_bytes: usize,
    /// Largest body of a request, bytes.
    pub body_bytes: usize,
    /// Open connections of all tenants together.
    pub connections: usize,
    /// Open connections of one tenant.
    pub connections_per_tenant: usize,
    /// Open connections of one guest.
    pub connections_per_guest: usize,
    /// Requests of one guest that are in flight or waiting.
    pub requests_in_flight_per_guest: usize,
}

/// How often a guest may ask; the names are Neutron's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct RateLimitConfig {
    /// Whether anything is limited.
    pub rate_limit_enabled: bool,
    /// Which guests are limited. Unlike Neutron, both versions together mean both.
    pub ip_versions: IpVersions,
    /// Length of the base window.
    #[serde(serialize_with = "whole_seconds")]
    pub base_window_duration: Duration,
    /// Requests in a base window.
    pub base_query_rate_limit: u32,
    /// Length of the burst window.
    #[serde(serialize_with = "whole_seconds")]
    pub burst_window_duration: Duration,
    /// Requests in a burst window.
    pub burst_query_rate_limit: u32,
}

fn whole_seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(duration.as_secs())
}

/// The agent's own sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdminConfig {
    /// Of the admin API.
    pub socket: PathBuf,
    /// For tenants that register themselves.
    pub register_socket: PathBuf,
}

/// What is logged, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LogConfig {
    /// How lines are written.
    pub format: LogFormat,
    /// What is logged: directives of `tracing_subscriber::EnvFilter`.
    pub level: String,
    /// Whether each request is logged.
    pub access: bool,
}

/// What the process gives up once it has started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SecurityConfig {
    /// What becomes of a system call that the agent has no use for.
    pub seccomp: Seccomp,
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ShutdownConfig {
    /// Time to finish what is in flight.
    #[serde(with = "humantime_serde")]
    pub grace: Duration,
}
