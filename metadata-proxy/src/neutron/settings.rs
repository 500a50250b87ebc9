//! How one tenant is to be served, as its configuration says.
//!
//! The serialised form of these types is part of the registration protocol: a field may be added
//! with a default, none may change its meaning without a new protocol number.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Serialize};

/// How one tenant is to be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantSettings {
    /// Where guests find the service; at least one.
    pub binds: Vec<Bind>,
    /// Unix socket of Neutron's metadata agent.
    pub agent_socket: PathBuf,
    /// How long each step of a request may take.
    #[serde(default)]
    pub timeouts: Timeouts,
    /// How often one guest may ask; `None` is without limit.
    #[serde(default)]
    pub rate_limit: Option<RateLimit>,
    /// Least important level that is logged.
    #[serde(default)]
    pub log_level: LogLevel,
    /// Most guest connections at one time; the agent's own cap holds too.
    #[serde(default)]
    pub max_connections: Option<u32>,
}

/// An address in the tenant namespace at which guests find the service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bind {
    /// Address, possibly unspecified.
    pub address: IpAddr,
    /// Port, never 0.
    pub port: u16,
    /// Device to which the listener is bound; link-local addresses need one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
}

impl Bind {
    /// Address and port, without a zone.
    #[must_use]
    pub const fn socket_address(&self) -> SocketAddr {
        SocketAddr::new(self.address, self.port)
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.socket_address())?;
        match &self.interface {
            Some(interface) => write!(f, " interface {interface}"),
            None => Ok(()),
        }
    }
}

/// How long each step of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timeouts {
    /// For a guest to send a complete request head.
    #[serde(rename = "request_head_ms", with = "milliseconds")]
    pub request_head: Duration,
    /// For a connection to the metadata agent.
    #[serde(rename = "connect_ms", with = "milliseconds")]
    pub connect: Duration,
    /// For a guest that is to send or to take something.
    #[serde(rename = "client_ms", with = "milliseconds")]
    pub client: Duration,
    /// For the metadata agent that is to send or to take something.
    #[serde(rename = "server_ms", with = "milliseconds")]
    pub server: Duration,
    /// Between two requests on one guest connection.
    #[serde(rename = "keep_alive_ms", with = "milliseconds")]
    pub keep_alive: Duration,
}

impl Default for Timeouts {
    /// What every Neutron release writes unless told otherwise.
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(30),
            connect: Duration::from_secs(30),
            client: Duration::from_secs(32),
            server: Duration::from_secs(32),
            keep_alive: Duration::from_secs(30),
        }
    }
}

/// How often one guest may ask: a rate above either window's limit is answered 429.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Guests that are counted; those of the other family have no limit.
    pub family: AddressFamily,
    /// The window for steady use.
    pub base: Window,
    /// The window for bursts.
    pub burst: Window,
}

/// Which guests a rate limit counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AddressFamily {
    /// Those with an IPv4 address.
    Ipv4,
    /// Those with an IPv6 address.
    Ipv6,
}

/// A sliding window of a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// Length of the window, never 0.
    #[serde(rename = "duration_ms", with = "milliseconds")]
    pub duration: Duration,
    /// Requests that one guest may make within the window.
    pub requests: u32,
}

/// A syslog level, most important first.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "syslog's own names")]
pub enum LogLevel {
    Emerg,
    Alert,
    Crit,
    Err,
    Warning,
    Notice,
    #[default]
    Info,
    Debug,
}

/// A word that is no syslog level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a syslog level (emerg, alert, crit, err, warning, notice, info, debug)")]
pub struct UnknownLogLevel;

impl FromStr for LogLevel {
    type Err = UnknownLogLevel;

    fn from_str(word: &str) -> Result<Self, UnknownLogLevel> {
        Ok(match word {
            "emerg" => Self::Emerg,
            "alert" => Self::Alert,
            "crit" => Self::Crit,
            "err" => Self::Err,
            "warning" => Self::Warning,
            "notice" => Self::Notice,
            "info" => Self::Info,
            "debug" => Self::Debug,
            _ => return Err(UnknownLogLevel),
        })
    }
}

/// Durations as whole milliseconds.
mod milliseconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_u64(u64::try_from(value.as_millis()).unwrap_or(u64::MAX))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_millis)
    }
}
