//! What a configuration says, before anybody asked whether it makes sense.
//!
//! Every key is optional and of the type TOML gives it; [`valid`](super::valid) makes a
//! [`Config`](super::Config) of it.

use serde::Deserialize;

/// Declares the sections: every key optional, unknown ones refused.
macro_rules! sections {
    ($($name:ident { $($(#[$attribute:meta])* $key:ident: $kind:ty,)* })+) => {
        $(
            #[derive(Debug, Default, Deserialize)]
            #[serde(default, deny_unknown_fields)]
            pub(super) struct $name {
                $($(#[$attribute])* pub(super) $key: Option<$kind>,)*
            }
        )+
    };
}

/// A whole configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawConfig {
    pub(super) workers: Option<i64>,
    pub(super) listener: RawListener,
    pub(super) steering: RawSteering,
    pub(super) discovery: RawDiscovery,
    pub(super) audit: RawAudit,
    pub(super) interfaces: RawInterfaces,
    pub(super) upstream: RawUpstream,
    pub(super) queue: RawQueue,
    pub(super) timeouts: RawTimeouts,
    pub(super) limits: RawLimits,
    pub(super) rate_limit: RawRateLimit,
    pub(super) admin: RawAdmin,
    pub(super) log: RawLog,
    pub(super) security: RawSecurity,
    pub(super) shutdown: RawShutdown,
}

/// Who answers.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RawUpstream {
    pub(super) kind: Option<String>,
    pub(super) agent: RawAgent,
    pub(super) http: RawHttp,
    pub(super) embedded: RawEmbedded,
}

sections! {
    RawListener {
        port: i64,
    }
    RawSteering {
        engine: String,
        connect_hooks: bool,
        cgroup: String,
        bpffs_dir: String,
        max_tenants: i64,
        rcu_expedited: bool,
        debug_log: bool,
    }
    RawDiscovery {
        netns_dir: String,
        scan_interval: String,
        neutron: bool,
        patterns: Vec<RawPattern>,
        retry_min: String,
        retry_max: String,
    }
    RawAudit {
        interval: String,
        connect_interval: String,
    }
    RawPattern {
        name: String,
        regex: String,
        kind: String,
        interfaces: Vec<String>,
    }
    RawInterfaces {
        router: Vec<String>,
        network: Vec<String>,
        #[serde(rename = "ovn-network")]
        ovn_network: Vec<String>,
    }
    RawAgent {
        socket: String,
        max_request_bytes: i64,
    }
    RawHttp {
        address: String,
        pool_size: i64,
    }
    RawEmbedded {
        file: String,
    }
    RawQueue {
        max_in_flight: i64,
        max_waiting: i64,
        max_waiting_per_tenant: i64,
    }
    RawTimeouts {
        request_head: String,
        request_body: String,
        connect: String,
        client: String,
        server: String,
        keep_alive: String,
    }
    RawLimits {
        head_bytes: i64,
        body_bytes: i64,
        connections: i64,
        connections_per_tenant: i64,
        connections_per_guest: i64,
        requests_in_flight_per_guest: i64,
    }
    RawRateLimit {
        rate_limit_enabled: bool,
        ip_versions: Vec<i64>,
        base_window_duration: i64,
        base_query_rate_limit: i64,
        burst_window_duration: i64,
        burst_query_rate_limit: i64,
    }
    RawAdmin {
        socket: String,
        register_socket: String,
    }
    RawLog {
        format: String,
        level: String,
        access: bool,
    }
    RawSecurity {
        seccomp: String,
    }
    RawShutdown {
        grace: String,
    }
}
