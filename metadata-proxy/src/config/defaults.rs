//! What holds for a key nobody gives; the example file says the same, and a test compares them.

use std::{path::PathBuf, time::Duration};

use metadata_proxy_common::DEFAULT_LISTENER_PORT;

use super::{
    AdminConfig, AgentConfig, AuditConfig, Config, DiscoveryConfig, EngineChoice, InterfaceGlob,
    InterfacesConfig, IpVersions, LimitsConfig, ListenerConfig, LogConfig, LogFormat, QueueConfig,
    RateLimitConfig, Seccomp, SecurityConfig, ShutdownConfig, SteeringConfig, TimeoutsConfig,
    UpstreamConfig,
};

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 0,
            listener: ListenerConfig {
                port: DEFAULT_LISTENER_PORT,
            },
            steering: SteeringConfig {
                engine: EngineChoice::Auto,
                connect_hooks: true,
                cgroup: None,
                bpffs_dir: PathBuf::from("/sys/fs/bpf/metadata-proxy"),
                max_tenants: 16384,
                rcu_expedited: true,
                debug_log: false,
            },
            discovery: DiscoveryConfig {
                netns_dir: PathBuf::from("/run/netns"),
                scan_interval: Duration::from_secs(10),
                neutron: true,
                retry_min: Duration::from_millis(100),
                retry_max: Duration::from_secs(30),
                patterns: Vec::new(),
            },
            audit: AuditConfig {
                interval: Duration::from_secs(10),
                connect_interval: Duration::from_mins(5),
            },
            interfaces: InterfacesConfig {
                router: globs(&["qr-*"]),
                network: globs(&["tap*", "ns-*"]),
                ovn_network: globs(&["tap*"]),
            },
            upstream: UpstreamConfig::Agent(AgentConfig::default()),
            queue: QueueConfig {
                max_in_flight: 0,
                max_waiting: 8192,
                max_waiting_per_tenant: 1024,
            },
            // The ones Neutron configures haproxy with.
            timeouts: TimeoutsConfig {
                request_head: Duration::from_secs(30),
                // haproxy has none: whoever sends a byte now and then may go on for ever.
                request_body: Duration::from_mins(1),
                connect: Duration::from_secs(30),
                client: Duration::from_secs(32),
                server: Duration::from_secs(32),
                keep_alive: Duration::from_secs(30),
            },
            limits: LimitsConfig {
                head_bytes: 16384,
                body_bytes: 65536,
                connections: 20000,
                connections_per_tenant: 4096,
                connections_per_guest: 256,
                requests_in_flight_per_guest: 64,
            },
            // Neutron's.
            rate_limit: RateLimitConfig {
                rate_limit_enabled: false,
                ip_versions: IpVersions {
                    v4: true,
                    v6: false,
                },
                base_window_duration: Duration::from_secs(10),
                base_query_rate_limit: 10,
                burst_window_duration: Duration::from_secs(10),
                burst_query_rate_limit: 10,
            },
            admin: AdminConfig {
                socket: PathBuf::from("/run/metadata-proxy/admin.sock"),
                register_socket: PathBuf::from("/run/metadata-proxy/register.sock"),
            },
            log: LogConfig {
                format: LogFormat::Text,
                level: String::from("info"),
                access: true,
            },
            security: SecurityConfig {
                seccomp: Seccomp::Enforce,
            },
            shutdown: ShutdownConfig {
                grace: Duration::from_secs(30),
            },
        }
    }
}

fn globs(patterns: &[&str]) -> Vec<InterfaceGlob> {
    patterns
        .iter()
        .map(|pattern| pattern.parse().expect("the default globs are valid"))
        .collect()
}
