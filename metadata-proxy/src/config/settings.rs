//! Every key that holds one value: what it is called everywhere and what may stand there.
//!
//! The one place where the range of a key is written down: flags, environment variables, the check
//! of values and the texts of errors all come from here. It must not know defaults: those are
//! [`Config::default`](super::Config).

use std::{ops::RangeInclusive, sync::LazyLock, time::Duration};

use super::words::{EngineChoice, LogFormat, Seccomp, UpstreamKind};

/// What may stand for a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// `true` or `false`.
    Bool,
    /// An integer in a range.
    Integer {
        /// The range, in the key's unit.
        range: RangeInclusive<i64>,
        /// What else is to be known: a unit, the meaning of 0.
        note: &'static str,
    },
    /// A duration such as `10s`, in a range.
    Duration(RangeInclusive<Duration>),
    /// One of a few words.
    Word(&'static [&'static str]),
    /// An absolute path.
    Path,
    /// An absolute path that fits a unix socket's address.
    SocketPath,
    /// Interface globs.
    Globs,
    /// A list of 4 and 6.
    IpVersions,
    /// An HTTP endpoint.
    Address,
    /// A log level, or directives for several modules.
    LogLevel,
}

/// Longest path of a unix socket, bytes: `sun_path` is 108 with the final zero (unix(7)).
pub const SOCKET_PATH_MAX: usize = 107;

impl Shape {
    /// What may stand there, for people.
    #[must_use]
    pub fn allowed(&self) -> String {
        match self {
            Self::Bool => String::from("true or false"),
            Self::Integer { range, note } => {
                format!("an integer from {} to {}{note}", range.start(), range.end())
            }
            Self::Duration(range) => format!(
                "a duration like \"10s\", \"500ms\" or \"2min\", from {} to {}",
                humantime::format_duration(*range.start()),
                humantime::format_duration(*range.end()),
            ),
            Self::Word(words) => words.join(", "),
            Self::Path => String::from("an absolute path"),
            Self::SocketPath => {
                format!("an absolute path of at most {SOCKET_PATH_MAX} bytes")
            }
            Self::Globs => String::from(
                "a list of interface names, in which * is anything and ? one character",
            ),
            Self::IpVersions => String::from("a list of 4, 6, or both"),
            Self::Address => String::from("host:port, http://host:port or unix:/path"),
            Self::LogLevel => String::from(
                "error, warn, info, debug, trace, off, or directives like \
                 info,metadata_proxy::serve=debug",
            ),
        }
    }
}

/// A key that holds one value, and can be given as a flag and in the environment too.
#[derive(Clone, Debug)]
pub struct Setting {
    /// The key with its sections: `listener.port`.
    pub key: &'static str,
    /// The flag, without dashes: `listener-port`.
    pub flag: String,
    /// The environment variable: `METADATA_PROXY_LISTENER_PORT`.
    pub variable: String,
    /// What may stand there.
    pub shape: Shape,
    /// What it is for, one line.
    pub help: &'static str,
    /// Whether the short help shows it.
    pub common: bool,
}

/// What the environment variables of settings start with.
pub const VARIABLE_PREFIX: &str = "METADATA_PROXY_";

/// Every setting, in the order of the example file.
pub static SETTINGS: LazyLock<Vec<Setting>> = LazyLock::new(all);

/// Finds the setting of a key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.key == key)
}

const fn integer(min: i64, max: i64, note: &'static str) -> Shape {
    Shape::Integer {
        range: min..=max,
        note,
    }
}

const fn duration(min: Duration, max: Duration) -> Shape {
    Shape::Duration(min..=max)
}

const HOUR: Duration = Duration::from_hours(1);
const SCAN: Shape = duration(Duration::from_secs(1), Duration::from_hours(24));
const WAIT: Shape = duration(Duration::from_millis(1), HOUR);
const GRACE: Shape = duration(Duration::ZERO, HOUR);
const SOME: Shape = integer(1, 1_000_000, "");
const WINDOW: Shape = integer(1, 86400, " seconds");
const HEAD: Shape = integer(8192, 1 << 20, " bytes");
const BODY: Shape = integer(0, 64 << 20, " bytes");
const AGENT_REQUEST: Shape = integer(512, 1 << 20, " bytes");
const WORKERS: Shape = integer(0, 1024, ", 0 for one per CPU");
const IN_FLIGHT: Shape = integer(0, 1_000_000, ", 0 to adapt to the upstream");
const POOL: Shape = integer(0, 1_000_000, "");
const PORT: Shape = integer(1, 65535, "");
const ENGINE: Shape = Shape::Word(EngineChoice::WORDS);
const UPSTREAM: Shape = Shape::Word(UpstreamKind::WORDS);
const SECCOMP: Shape = Shape::Word(Seccomp::WORDS);
const LOG_FORMAT: Shape = Shape::Word(LogFormat::WORDS);

/// Key, what may stand there, what it is for.
type Row = (&'static str, Shape, &'static str);

const TABLE: &[Row] = &[
    ("workers", WORKERS, "Threads that serve connections"),
    (
        "listener.port",
        PORT,
        "Port of the listeners in tenant namespaces",
    ),
    ("steering.engine", ENGINE, "How connections are steered"),
    (
        "steering.connect_hooks",
        Shape::Bool,
        "Serve processes inside tenant namespaces too",
    ),
    (
        "steering.cgroup",
        Shape::Path,
        "Cgroup (v2) whose processes are served",
    ),
    (
        "steering.bpffs_dir",
        Shape::Path,
        "Directory on bpffs for pinned maps and links",
    ),
    ("steering.max_tenants", SOME, "Size of the map of tenants"),
    (
        "steering.rcu_expedited",
        Shape::Bool,
        "Short RCU grace periods while a device is attached to",
    ),
    (
        "steering.debug_log",
        Shape::Bool,
        "Let the kernel programs write debug lines",
    ),
    (
        "discovery.netns_dir",
        Shape::Path,
        "Directory of named network namespaces",
    ),
    ("discovery.scan_interval", SCAN, "Time between scans"),
    (
        "discovery.neutron",
        Shape::Bool,
        "Recognise the names Neutron gives namespaces",
    ),
    (
        "discovery.retry_min",
        WAIT,
        "First wait before a failed tenant is tried again",
    ),
    (
        "discovery.retry_max",
        WAIT,
        "Longest wait before a failed tenant is tried again",
    ),
    (
        "audit.interval",
        SCAN,
        "Time within which every tenant is looked at",
    ),
    (
        "audit.connect_interval",
        SCAN,
        "Time within which every tenant's service is proved",
    ),
    (
        "interfaces.router",
        Shape::Globs,
        "Guest-facing interfaces of routers",
    ),
    (
        "interfaces.network",
        Shape::Globs,
        "Guest-facing interfaces of networks",
    ),
    (
        "interfaces.ovn-network",
        Shape::Globs,
        "Guest-facing interfaces of OVN networks",
    ),
    ("upstream.kind", UPSTREAM, "Who answers"),
    (
        "upstream.agent.socket",
        Shape::SocketPath,
        "Unix socket of Neutron's metadata agent",
    ),
    (
        "upstream.agent.max_request_bytes",
        AGENT_REQUEST,
        "What the agent reads of one request",
    ),
    (
        "upstream.http.address",
        Shape::Address,
        "Endpoint of the http upstream",
    ),
    (
        "upstream.http.pool_size",
        POOL,
        "Idle connections each worker keeps to the http upstream",
    ),
    (
        "upstream.embedded.file",
        Shape::Path,
        "Instances of the embedded upstream",
    ),
    (
        "queue.max_in_flight",
        IN_FLIGHT,
        "Requests the upstream is given at once",
    ),
    (
        "queue.max_waiting",
        SOME,
        "Requests that may wait for the upstream",
    ),
    (
        "queue.max_waiting_per_tenant",
        SOME,
        "Requests of one tenant that may wait",
    ),
    (
        "timeouts.request_head",
        WAIT,
        "Time for a guest to send a request's head",
    ),
    (
        "timeouts.request_body",
        WAIT,
        "Time for a guest to send a request's whole body",
    ),
    ("timeouts.connect", WAIT, "Time to connect to the upstream"),
    (
        "timeouts.client",
        WAIT,
        "Time for a guest to send or take the next bytes",
    ),
    ("timeouts.server", WAIT, "Time for the upstream to answer"),
    (
        "timeouts.keep_alive",
        WAIT,
        "Time a guest's idle connection is kept",
    ),
    ("limits.head_bytes", HEAD, "Largest head of a request"),
    ("limits.body_bytes", BODY, "Largest body of a request"),
    (
        "limits.connections",
        SOME,
        "Open connections of all tenants",
    ),
    (
        "limits.connections_per_tenant",
        SOME,
        "Open connections of one tenant",
    ),
    (
        "limits.connections_per_guest",
        SOME,
        "Open connections of one guest",
    ),
    (
        "limits.requests_in_flight_per_guest",
        SOME,
        "Requests of one guest at once",
    ),
    (
        "rate_limit.rate_limit_enabled",
        Shape::Bool,
        "Limit the rate of each guest's requests",
    ),
    (
        "rate_limit.ip_versions",
        Shape::IpVersions,
        "IP versions whose guests are limited",
    ),
    (
        "rate_limit.base_window_duration",
        WINDOW,
        "Length of the base window",
    ),
    (
        "rate_limit.base_query_rate_limit",
        SOME,
        "Requests in a base window",
    ),
    (
        "rate_limit.burst_window_duration",
        WINDOW,
        "Length of the burst window",
    ),
    (
        "rate_limit.burst_query_rate_limit",
        SOME,
        "Requests in a burst window",
    ),
    (
        "admin.socket",
        Shape::SocketPath,
        "Unix socket of the admin API",
    ),
    (
        "admin.register_socket",
        Shape::SocketPath,
        "Unix socket for registered tenants",
    ),
    ("log.format", LOG_FORMAT, "How log lines are written"),
    ("log.level", Shape::LogLevel, "What is logged"),
    ("log.access", Shape::Bool, "Log one line per request"),
    (
        "security.seccomp",
        SECCOMP,
        "What becomes of system calls the agent has no use for",
    ),
    ("shutdown.grace", GRACE, "Time to finish what is in flight"),
];

/// Those the short help shows.
const COMMON: &[&str] = &[
    "workers",
    "listener.port",
    "steering.engine",
    "steering.cgroup",
    "discovery.netns_dir",
    "upstream.kind",
    "upstream.agent.socket",
    "upstream.http.address",
    "upstream.embedded.file",
    "admin.socket",
    "log.format",
    "log.level",
];

fn all() -> Vec<Setting> {
    let setting = |(key, shape, help): &Row| {
        let flag = key.replace(['.', '_'], "-");
        let variable = format!("{VARIABLE_PREFIX}{}", flag.replace('-', "_").to_uppercase());
        let common = COMMON.contains(key);
        Setting {
            key,
            flag,
            variable,
            shape: shape.clone(),
            help,
            common,
        }
    };
    TABLE.iter().map(setting).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_two_settings_share_a_name() {
        let flags: BTreeSet<_> = SETTINGS.iter().map(|s| &s.flag).collect();
        let variables: BTreeSet<_> = SETTINGS.iter().map(|s| &s.variable).collect();
        assert_eq!(
            (flags.len(), variables.len()),
            (SETTINGS.len(), SETTINGS.len())
        );
    }

    #[test]
    fn names_follow_from_the_key() {
        let setting = find("interfaces.ovn-network").unwrap();
        assert_eq!(setting.flag, "interfaces-ovn-network");
        assert_eq!(setting.variable, "METADATA_PROXY_INTERFACES_OVN_NETWORK");
    }
}
