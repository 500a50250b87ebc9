//! Makes the settings of services and upstreams from the configuration, and a tenant's own.

use std::{
    collections::HashMap,
    net::ToSocketAddrs as _,
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use tracing::warn;

use crate::{
    admission::{BoundPolicy, Families, QueueLimits, RateLimits, WindowLimit},
    config::{
        Config, HttpAddress, IpVersions, QueueConfig, RateLimitConfig, TimeoutsConfig,
        UpstreamConfig,
    },
    neutron::{self, AddressFamily, LogLevel, TenantSettings},
    tenants::{Declaration, Settings},
    upstream::{Agent, AgentConfig, Endpoint, Http, HttpConfig, Upstream, embedded::Embedded},
};

/// Most requests an adaptive bound gives the agent at once.
const AGENT_CEILING: u32 = 256;
/// Requests given at once to an upstream that takes as many as come.
const HTTP_BOUND: u32 = 1024;
/// How long idle connections to an HTTP upstream are kept: less than common servers do.
const HTTP_IDLE: Duration = Duration::from_secs(4);
/// How long a refused connect to an HTTP upstream is tried again.
const HTTP_PATIENCE: Duration = Duration::from_millis(500);

/// Makes settings, and keeps one upstream for each socket that tenants name.
pub(super) struct SettingsFactory {
    upstream: Arc<Upstream>,
    queue: Mutex<QueueConfig>,
    node: Mutex<Arc<Settings>>,
    agents: Mutex<HashMap<PathBuf, Arc<Upstream>>>,
    /// Whether a tenant may name the socket of its own agent: not if the node has another upstream.
    follows_tenants: bool,
}

impl SettingsFactory {
    /// Makes the node's upstream and settings.
    ///
    /// # Errors
    /// When the upstream cannot be made from its configuration.
    pub(super) async fn new(config: &Config) -> anyhow::Result<Self> {
        let upstream = Arc::new(upstream(config).await?);
        let mut agents = HashMap::new();
        let mut follows_tenants = false;
        if let UpstreamConfig::Agent(agent) = &config.upstream {
            agents.insert(agent.socket.clone(), Arc::clone(&upstream));
            follows_tenants = true;
        }
        let node = Arc::new(settings(config, Arc::clone(&upstream)));
        Ok(Self {
            upstream,
            queue: Mutex::new(config.queue.clone()),
            node: Mutex::new(node),
            agents: Mutex::new(agents),
            follows_tenants,
        })
    }

    /// The embedded upstream, if that is what answers.
    pub(super) fn embedded(&self) -> Option<Arc<Embedded>> {
        match &*self.upstream {
            Upstream::Embedded(embedded) => Some(Arc::clone(embedded)),
            Upstream::Agent(_) | Upstream::Http(_) => None,
        }
    }

    /// The node's upstream.
    pub(super) const fn upstream(&self) -> &Arc<Upstream> {
        &self.upstream
    }

    /// Every upstream that is in use.
    pub(super) fn upstreams(&self) -> Vec<Arc<Upstream>> {
        let mut all: Vec<_> = lock(&self.agents).values().cloned().collect();
        if !all
            .iter()
            .any(|upstream| Arc::ptr_eq(upstream, &self.upstream))
        {
            all.push(Arc::clone(&self.upstream));
        }
        all
    }

    /// The node's settings.
    pub(super) fn node_settings(&self) -> Arc<Settings> {
        Arc::clone(&lock(&self.node))
    }

    /// Puts another configuration in force, as far as that needs no restart.
    pub(super) fn reconfigure(&self, config: &Config) -> Arc<Settings> {
        *lock(&self.queue) = config.queue.clone();
        for upstream in self.upstreams() {
            upstream.reconfigure(bound(&config.queue, &upstream), waiting(&config.queue));
        }
        let settings = Arc::new(settings(config, Arc::clone(&self.upstream)));
        *lock(&self.node) = Arc::clone(&settings);
        settings
    }

    /// The settings of one tenant: the node's, or what its own configuration says.
    pub(super) fn of(&self, node: &Arc<Settings>, declaration: &Declaration) -> Arc<Settings> {
        let Some(own) = &declaration.settings else {
            return Arc::clone(node);
        };
        let TenantSettings {
            agent_socket,
            timeouts,
            rate_limit,
            log_level,
            max_connections,
            binds: _,
        } = &**own;
        let upstream = if self.follows_tenants {
            self.agent(agent_socket)
        } else {
            Arc::clone(&self.upstream)
        };
        Arc::new(Settings {
            upstream,
            timeouts: TimeoutsConfig {
                request_head: timeouts.request_head,
                // Neutron's configuration has none.
                request_body: node.timeouts.request_body,
                connect: timeouts.connect,
                client: timeouts.client,
                server: timeouts.server,
                keep_alive: timeouts.keep_alive,
            },
            rate_limits: rate_limit.map(rate_limits_of_tenant).or(node.rate_limits),
            head_bytes: node.head_bytes,
            body_bytes: node.body_bytes,
            max_connections: *max_connections,
            log_access: node.log_access && *log_level >= LogLevel::Info,
        })
    }

    fn agent(&self, socket: &Path) -> Arc<Upstream> {
        let mut agents = lock(&self.agents);
        if let Some(agent) = agents.get(socket) {
            return Arc::clone(agent);
        }
        let queue = lock(&self.queue);
        match agent(socket, neutron_request_bytes(), &queue) {
            Ok(agent) => {
                let agent = Arc::new(agent);
                agents.insert(socket.to_owned(), Arc::clone(&agent));
                agent
            }
            Err(error) => {
                warn!(socket = %socket.display(), %error, "a tenant names an impossible socket");
                Arc::clone(&self.upstream)
            }
        }
    }
}

/// What agents since 2025.1 read of one request, bytes.
const fn neutron_request_bytes() -> usize {
    4096
}

fn settings(config: &Config, upstream: Arc<Upstream>) -> Settings {
    Settings {
        upstream,
        timeouts: config.timeouts.clone(),
        rate_limits: rate_limits(&config.rate_limit),
        head_bytes: config.limits.head_bytes,
        body_bytes: config.limits.body_bytes,
        max_connections: None,
        log_access: config.log.access,
    }
}

fn rate_limits(config: &RateLimitConfig) -> Option<RateLimits> {
    let IpVersions { v4, v6 } = config.ip_versions;
    config.rate_limit_enabled.then_some(RateLimits {
        base: WindowLimit {
            period: config.base_window_duration,
            requests: config.base_query_rate_limit,
        },
        burst: WindowLimit {
            period: config.burst_window_duration,
            requests: config.burst_query_rate_limit,
        },
        families: Families { v4, v6 },
    })
}

fn rate_limits_of_tenant(limit: neutron::RateLimit) -> RateLimits {
    let window = |window: neutron::Window| WindowLimit {
        period: window.duration,
        requests: window.requests,
    };
    RateLimits {
        base: window(limit.base),
        burst: window(limit.burst),
        families: Families {
            v4: limit.family == AddressFamily::Ipv4,
            v6: limit.family == AddressFamily::Ipv6,
        },
    }
}

async fn upstream(config: &Config) -> anyhow::Result<Upstream> {
    match &config.upstream {
        UpstreamConfig::Agent(upstream) => {
            agent(&upstream.socket, upstream.max_request_bytes, &config.queue).with_context(|| {
                format!(
                    "upstream.agent.socket {} is impossible",
                    upstream.socket.display()
                )
            })
        }
        UpstreamConfig::Http(upstream) => Ok(Upstream::Http(Http::new(HttpConfig {
            endpoint: endpoint(&upstream.address).await?,
            most_idle: upstream.pool_size,
            longest_idle: HTTP_IDLE,
            patience: HTTP_PATIENCE,
            bound: BoundPolicy::Fixed(positive(config.queue.max_in_flight, HTTP_BOUND)),
            waiting: waiting(&config.queue),
        }))),
        UpstreamConfig::Embedded(upstream) => Ok(Upstream::Embedded(Arc::new(Embedded::open(
            &upstream.file,
        )?))),
    }
}

async fn endpoint(address: &HttpAddress) -> anyhow::Result<Endpoint> {
    let (name, port) = match address {
        HttpAddress::Unix(path) => return Ok(Endpoint::Unix(path.clone())),
        HttpAddress::Tcp { host, port } => (host, *port),
    };
    let host = name.clone();
    let resolved = tokio::task::spawn_blocking(move || {
        (host.as_str(), port)
            .to_socket_addrs()
            .map(|mut all| all.next())
    })
    .await
    .context("resolving was cut short")?;
    resolved
        .with_context(|| format!("cannot resolve upstream.http.address {name}"))?
        .with_context(|| format!("upstream.http.address {name} has no address"))
        .map(Endpoint::Tcp)
}

fn agent(
    socket: &Path,
    max_request_bytes: usize,
    queue: &QueueConfig,
) -> std::io::Result<Upstream> {
    let agent = Agent::new(AgentConfig {
        path: socket.to_owned(),
        max_request_bytes,
        bound: agent_bound(queue),
        waiting: waiting(queue),
    })?;
    Ok(Upstream::Agent(agent))
}

fn agent_bound(queue: &QueueConfig) -> BoundPolicy {
    match queue.max_in_flight {
        0 => BoundPolicy::Adaptive {
            ceiling: positive(0, AGENT_CEILING),
        },
        fixed => BoundPolicy::Fixed(positive(fixed, AGENT_CEILING)),
    }
}

fn bound(queue: &QueueConfig, upstream: &Upstream) -> BoundPolicy {
    match upstream {
        Upstream::Agent(_) => agent_bound(queue),
        Upstream::Http(_) | Upstream::Embedded(_) => {
            BoundPolicy::Fixed(positive(queue.max_in_flight, HTTP_BOUND))
        }
    }
}

fn positive(configured: usize, otherwise: u32) -> NonZeroU32 {
    u32::try_from(configured)
        .ok()
        .and_then(NonZeroU32::new)
        .or(NonZeroU32::new(otherwise))
        .unwrap_or(NonZeroU32::MIN)
}

const fn waiting(queue: &QueueConfig) -> QueueLimits {
    QueueLimits {
        waiting: queue.max_waiting,
        waiting_per_tenant: queue.max_waiting_per_tenant,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
