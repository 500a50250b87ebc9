//! Makes a [`Config`] of a [`RawConfig`], and tells everything that stands in the way.
//!
//! A value that is not valid is noted and replaced by its default, so that the rest is looked at
//! too; the result is used only if nothing was noted.

use metadata_proxy_common::TenantKind;

use super::{
    AdminConfig, AgentConfig, AuditConfig, Config, DiscoveryConfig, EmbeddedConfig, HttpConfig,
    InterfacesConfig, LimitsConfig, ListenerConfig, LogConfig, Pattern, QueueConfig,
    RateLimitConfig, SecurityConfig, ShutdownConfig, SteeringConfig, TimeoutsConfig,
    UpstreamConfig, UpstreamKind,
    check::Check,
    document::Origins,
    problem::Problem,
    raw::{RawConfig, RawPattern, RawUpstream},
};
use crate::identity::kind_from_name;

/// Makes a section: each key checked by the method of [`Check`] named after it.
macro_rules! section {
    ($check:ident, $section:literal, $raw:expr, $default:expr => $name:ident { $($key:ident: $how:ident,)* $(; $extra:ident: $value:expr,)* }) => {{
        let (raw, default) = ($raw, $default);
        $name {
            $($key: $check.$how(concat!($section, ".", stringify!($key)), raw.$key, default.$key),)*
            $($extra: $value,)*
        }
    }};
}

/// Checks every value, then how values fit together.
pub(super) fn validate(
    raw: RawConfig,
    origins: &Origins,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Problem>,
) -> Config {
    let mut check = Check::new(origins, problems);
    let default = Config::default();
    let config = Config {
        workers: check.integer("workers", raw.workers, default.workers),
        listener: section!(check, "listener", raw.listener, default.listener => ListenerConfig {
            port: integer,
        }),
        steering: section!(check, "steering", raw.steering, default.steering => SteeringConfig {
            engine: word,
            connect_hooks: boolean,
            cgroup: optional_path,
            bpffs_dir: path,
            max_tenants: integer,
            rcu_expedited: boolean,
            debug_log: boolean,
        }),
        discovery: {
            let mut raw = raw.discovery;
            let patterns = patterns(&mut check, raw.patterns.take().unwrap_or_default());
            section!(check, "discovery", raw, default.discovery => DiscoveryConfig {
                netns_dir: path,
                scan_interval: duration,
                neutron: boolean,
                retry_min: duration,
                retry_max: duration,
                ; patterns: patterns,
            })
        },
        audit: section!(check, "audit", raw.audit, default.audit => AuditConfig {
            interval: duration,
            connect_interval: duration,
        }),
        interfaces: {
            let ovn_network = check.globs(
                "interfaces.ovn-network",
                raw.interfaces.ovn_network,
                default.interfaces.ovn_network,
            );
            let (router, network) = (raw.interfaces.router, raw.interfaces.network);
            InterfacesConfig {
                router: check.globs("interfaces.router", router, default.interfaces.router),
                network: check.globs("interfaces.network", network, default.interfaces.network),
                ovn_network,
            }
        },
        upstream: upstream(&mut check, raw.upstream),
        queue: section!(check, "queue", raw.queue, default.queue => QueueConfig {
            max_in_flight: integer,
            max_waiting: integer,
            max_waiting_per_tenant: integer,
        }),
        timeouts: section!(check, "timeouts", raw.timeouts, default.timeouts => TimeoutsConfig {
            request_head: duration,
            request_body: duration,
            connect: duration,
            client: duration,
            server: duration,
            keep_alive: duration,
        }),
        limits: section!(check, "limits", raw.limits, default.limits => LimitsConfig {
            head_bytes: integer,
            body_bytes: integer,
            connections: integer,
            connections_per_tenant: integer,
            connections_per_guest: integer,
            requests_in_flight_per_guest: integer,
        }),
        rate_limit: section!(check, "rate_limit", raw.rate_limit, default.rate_limit => RateLimitConfig {
            rate_limit_enabled: boolean,
            ip_versions: ip_versions,
            base_window_duration: seconds,
            base_query_rate_limit: integer,
            burst_window_duration: seconds,
            burst_query_rate_limit: integer,
        }),
        admin: section!(check, "admin", raw.admin, default.admin => AdminConfig {
            socket: path,
            register_socket: path,
        }),
        log: section!(check, "log", raw.log, default.log => LogConfig {
            format: word,
            level: level,
            access: boolean,
        }),
        security: section!(check, "security", raw.security, default.security => SecurityConfig {
            seccomp: word,
        }),
        shutdown: section!(check, "shutdown", raw.shutdown, default.shutdown => ShutdownConfig {
            grace: duration,
        }),
    };
    together(&config, &mut check, warnings);
    config
}

fn patterns(check: &mut Check<'_>, raw: Vec<RawPattern>) -> Vec<Pattern> {
    raw.into_iter()
        .enumerate()
        .filter_map(|(index, raw)| pattern(check, index, raw))
        .collect()
}

fn pattern(check: &mut Check<'_>, index: usize, raw: RawPattern) -> Option<Pattern> {
    const KINDS: &str = "router, network, ovn-network";
    const REGEX: &str = "a regular expression over the whole name of a namespace, in which the \
                         group (?<id>...) is the tenant's UUID";
    let path = format!("discovery.patterns[{index}]");
    let key = |name: &str| format!("{path}.{name}");

    let name = raw.name.filter(|name| !name.trim().is_empty());
    if name.is_none() {
        check.problem(
            &key("name"),
            "is missing",
            Some("what people call the pattern"),
        );
    }
    let kind = raw.kind.as_deref().and_then(kind_from_name);
    match (&raw.kind, kind) {
        (None, _) => check.problem(&key("kind"), "is missing", Some(KINDS)),
        (Some(word), None) => {
            check.problem(
                &key("kind"),
                &format!("{word:?} is no kind of tenant"),
                Some(KINDS),
            );
        }
        (Some(_), Some(_)) => {}
    }
    let interfaces = raw
        .interfaces
        .map(|globs| check.globs(&key("interfaces"), Some(globs), Vec::new()));
    let Some(regex) = raw.regex else {
        check.problem(&key("regex"), "is missing", Some(REGEX));
        return None;
    };
    // What is missing was told above, and is no reason not to look at the expression too.
    let kind = kind.unwrap_or(TenantKind::Router);
    match Pattern::new(name.unwrap_or_default(), &regex, kind, interfaces) {
        Ok(pattern) => Some(pattern),
        Err(error) => {
            check.problem(&key("regex"), &error.to_string(), Some(REGEX));
            None
        }
    }
}

fn upstream(check: &mut Check<'_>, raw: RawUpstream) -> UpstreamConfig {
    // All kinds' keys are checked, so that changing the kind later brings no surprise.
    let agent = section!(check, "upstream.agent", raw.agent, AgentConfig::default() => AgentConfig {
        socket: path,
        max_request_bytes: integer,
    });
    let (address, file) = (raw.http.address, raw.embedded.file);
    let (has_address, has_file) = (address.is_some(), file.is_some());
    let address = check.optional_address("upstream.http.address", address);
    let pool_size = check.integer(
        "upstream.http.pool_size",
        raw.http.pool_size,
        HttpConfig::POOL_SIZE,
    );
    let file = check.optional_path("upstream.embedded.file", file, None);

    match check.word("upstream.kind", raw.kind, UpstreamKind::Agent) {
        UpstreamKind::Agent => UpstreamConfig::Agent(agent),
        UpstreamKind::Http => {
            if !has_address {
                check.needed("upstream.http.address", "upstream.kind", "http");
            }
            match address {
                Some(address) => UpstreamConfig::Http(HttpConfig { address, pool_size }),
                None => UpstreamConfig::Agent(agent),
            }
        }
        UpstreamKind::Embedded => {
            if !has_file {
                check.needed("upstream.embedded.file", "upstream.kind", "embedded");
            }
            match file {
                Some(file) => UpstreamConfig::Embedded(EmbeddedConfig { file }),
                None => UpstreamConfig::Agent(agent),
            }
        }
    }
}

/// What no value shows alone.
fn together(config: &Config, check: &mut Check<'_>, warnings: &mut Vec<Problem>) {
    if config.discovery.retry_min > config.discovery.retry_max {
        check.problem(
            "discovery.retry_min",
            "is longer than discovery.retry_max",
            Some("at most discovery.retry_max"),
        );
    }
    if config.admin.socket == config.admin.register_socket {
        check.problem(
            "admin.register_socket",
            "is the same as admin.socket",
            Some("another path, because another API is spoken there"),
        );
    }
    let (queue, limits) = (&config.queue, &config.limits);
    if queue.max_waiting_per_tenant > queue.max_waiting {
        warnings.push(check.remark(
            "queue.max_waiting_per_tenant",
            "has no effect: it is more than queue.max_waiting, so one tenant can fill the queue",
        ));
    }
    if limits.connections_per_tenant > limits.connections {
        warnings.push(check.remark(
            "limits.connections_per_tenant",
            "has no effect: it is more than limits.connections, so one tenant can take them all",
        ));
    }
    if limits.connections_per_guest > limits.connections_per_tenant {
        warnings.push(check.remark(
            "limits.connections_per_guest",
            "has no effect: it is more than limits.connections_per_tenant",
        ));
    }
}
