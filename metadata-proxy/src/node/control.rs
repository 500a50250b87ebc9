//! What operators may ask of the running agent, and what they are told.

use std::{collections::BTreeMap, os::fd::AsFd as _, path::PathBuf, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use metadata_proxy_common::{ABI_VERSION, TenantKind};
use prometheus_client::registry::Registry as MetricsRegistry;
use tokio::sync::watch;
use tracing::{error, info};
use uuid::Uuid;

use super::{caps, exposition, open_files, settings::SettingsFactory};
use crate::{
    admin::{
        Control, ControlError,
        api::{
            AddTenant, AuditStatus, Counts, EngineStatus, NamespaceRef, NodeStatus, QueueStatus,
            TenantCounts, TenantStatus, UpstreamStatus,
        },
    },
    config::{Config, ConfigSources, UpstreamConfig},
    identity::Tenant,
    kernel::{Decision, Kernel},
    netns::{Netns, NetnsId},
    serve,
    tenants::{AddError, Command, Declaration, Provider, RegistryHandle, Repairs, Source},
};

/// The running agent, as the admin socket sees it.
pub(super) struct NodeControl {
    pub(super) config: Arc<ArcSwap<Config>>,
    pub(super) sources: ConfigSources,
    pub(super) started: Instant,
    pub(super) engine: Decision,
    pub(super) kernel: Arc<dyn Kernel>,
    pub(super) node: Arc<serve::Node>,
    pub(super) registry: RegistryHandle,
    pub(super) factory: Arc<SettingsFactory>,
    pub(super) metrics: MetricsRegistry,
    pub(super) repairs: Repairs,
    pub(super) is_scanned: watch::Receiver<bool>,
}

impl Control for NodeControl {
    async fn status(&self) -> NodeStatus {
        let tenants = self.registry.list().await;
        let mut counts = TenantCounts::default();
        let mut connections = Counts::default();
        let mut requests = Counts::default();
        for tenant in &tenants {
            counts.add(tenant.state);
            connections.total += tenant.connections.total;
            requests.total += tenant.requests.total;
        }
        let limits = self.node.limits.snapshot();
        connections.open = limits.connections.into();
        requests.open = limits.requests.into();
        NodeStatus {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: ABI_VERSION,
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            kernel: kernel_release(),
            engine: EngineStatus {
                name: self.engine.engine.word().to_owned(),
                reason: self.engine.reason.clone(),
                attach: self.engine.attach.map(|attach| attach.word().to_owned()),
            },
            upstream: self.upstream_status(),
            queue: self.queue_status(),
            tenants: counts,
            connections,
            requests,
            outcomes: self.outcomes(),
            audit: self.audit_status(&tenants),
            warnings: self.warnings(),
        }
    }

    async fn tenants(&self) -> Vec<TenantStatus> {
        self.registry.list().await
    }

    async fn add(&self, request: AddTenant) -> Result<TenantStatus, ControlError> {
        let tenant = Tenant {
            kind: request.kind,
            id: request.id,
        };
        let config = self.config.load_full();
        let path = match &request.namespace {
            NamespaceRef::Name(name) => config.discovery.netns_dir.join(name),
            NamespaceRef::Path(path) => path.clone(),
            NamespaceRef::Pid(pid) => PathBuf::from(format!("/proc/{pid}/ns/net")),
        };
        let netns =
            Netns::open(&path).map_err(|error| ControlError::Impossible(error.to_string()))?;
        let declaration = Declaration {
            provider: Provider::Admin,
            tenant,
            name: request.namespace.to_string(),
            netns: netns.id(),
            source: Source::Path(path),
            interfaces: config.interfaces.of(request.kind).to_vec(),
            settings: None,
        };
        if let NamespaceRef::Pid(pid) = request.namespace {
            watch_process(&self.registry, pid, declaration.netns).map_err(|error| {
                ControlError::Impossible(format!("cannot watch process {pid}: {error}"))
            })?;
        }
        drop(netns);
        match self.registry.declare(declaration).await {
            Ok(()) | Err(AddError::Failing(_)) => {}
            Err(AddError::Conflict(conflict)) => return Err(ControlError::Conflict(conflict)),
        }
        self.tenants()
            .await
            .into_iter()
            .find(|status| status.kind == tenant.kind && status.id == tenant.id)
            .ok_or_else(|| ControlError::Internal(format!("{tenant} is gone again")))
    }

    async fn remove(&self, kind: TenantKind, id: Uuid) -> Result<(), ControlError> {
        let tenant = Tenant { kind, id };
        match self.registry.remove(tenant).await {
            Some(true) => Ok(()),
            Some(false) => Err(ControlError::Conflict(format!(
                "{tenant} was not added by hand: it is served as long as its namespace is there"
            ))),
            None => Err(ControlError::NotFound(format!(
                "{tenant} is not served here"
            ))),
        }
    }

    async fn metrics(&self) -> String {
        let tenants = self.registry.list().await;
        exposition::text(
            &self.metrics,
            &tenants,
            &self.kernel.outcomes().unwrap_or_default(),
            &self.factory.upstreams(),
            &self.node,
        )
    }

    async fn ready(&self) -> Result<(), String> {
        if *self.is_scanned.borrow() {
            Ok(())
        } else {
            Err("the first scan for tenant namespaces is not over".to_owned())
        }
    }

    async fn reload(&self) -> Result<String, String> {
        match Config::load(&self.sources) {
            Ok(loaded) => {
                let before = self.config.load_full();
                let needs_restart = needs_restart(&before, &loaded.config);
                self.node.limits.set_caps(caps(&loaded.config));
                let settings = self.factory.reconfigure(&loaded.config);
                self.config.store(Arc::new(loaded.config));
                let audit = self.config.load().audit;
                self.registry.reconfigure(settings, audit).await;
                let message = if needs_restart.is_empty() {
                    "configuration reloaded".to_owned()
                } else {
                    format!(
                        "configuration reloaded, except for {}: that takes a restart",
                        needs_restart.join(", ")
                    )
                };
                info!("{message}");
                Ok(message)
            }
            Err(errors) => {
                error!("the configuration is not reloaded, the old one holds:\n{errors}");
                Err(errors.to_string())
            }
        }
    }

    async fn config(&self) -> String {
        toml::to_string(&**self.config.load())
            .unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
    }
}

impl NodeControl {
    fn upstream_status(&self) -> UpstreamStatus {
        let config = self.config.load();
        let place = match &config.upstream {
            UpstreamConfig::Agent(agent) => agent.socket.display().to_string(),
            UpstreamConfig::Http(http) => http.address.to_string(),
            UpstreamConfig::Embedded(embedded) => embedded.file.display().to_string(),
        };
        UpstreamStatus {
            kind: self.factory.upstream().kind_name().to_owned(),
            place,
            last_error: self.node.metrics.last_upstream_error(),
        }
    }

    fn queue_status(&self) -> QueueStatus {
        let mut status = QueueStatus::default();
        for upstream in self.factory.upstreams() {
            let queue = upstream.snapshot().queue;
            status.in_flight += u64::from(queue.in_flight);
            status.bound += u64::from(queue.bound);
            status.waiting += queue.waiting as u64;
        }
        status
    }

    fn outcomes(&self) -> BTreeMap<String, u64> {
        let outcomes = self.kernel.outcomes().unwrap_or_default();
        outcomes
            .into_iter()
            .map(|(outcome, count)| (outcome.label().to_owned(), count))
            .collect()
    }

    fn audit_status(&self, tenants: &[TenantStatus]) -> AuditStatus {
        let periods = self.config.load().audit;
        let now = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .unwrap_or_default();
        let since = now
            .as_secs()
            .saturating_sub(2 * periods.connect_interval.as_secs());
        let count = |wanted: fn(&TenantStatus, u64) -> bool| {
            let found = tenants.iter().filter(|tenant| wanted(tenant, since));
            found.count() as u64
        };
        AuditStatus {
            interval_seconds: periods.interval.as_secs(),
            connect_interval_seconds: periods.connect_interval.as_secs(),
            proved: count(|tenant, since| tenant.proved_unix.is_some_and(|at| at >= since)),
            faulty: count(|tenant, _| tenant.fault.is_some()),
            repairs: self.repairs.counts(),
        }
    }

    fn warnings(&self) -> Vec<String> {
        let embedded = self
            .factory
            .embedded()
            .and_then(|embedded| embedded.last_error());
        let files = open_files::too_few(&self.config.load());
        embedded.into_iter().chain(files).collect()
    }
}

/// Ends a tenant that was added by a process when that process ends: only then is its namespace not
/// kept alive by us.
pub(super) fn watch_process(
    registry: &RegistryHandle,
    pid: u32,
    netns: NetnsId,
) -> std::io::Result<()> {
    let process = pidfd(pid)?;
    let registry = registry.clone();
    tokio::spawn(async move {
        // SAFETY: the descriptor is owned, and stays open until the `AsyncFd` is dropped.
        let watched = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(process, tokio::io::Interest::READABLE)
        };
        if let Ok(watched) = watched {
            // Readable means that the process has ended.
            let _ = watched.readable().await;
            let _ = watched.get_ref().as_fd();
        }
        registry
            .send(Command::Withdraw(netns, Provider::Admin))
            .await;
    });
    Ok(())
}

/// Keys whose change takes a restart.
fn needs_restart(before: &Config, after: &Config) -> Vec<&'static str> {
    let mut changed = Vec::new();
    let mut note = |name, differs| {
        if differs {
            changed.push(name);
        }
    };
    note("workers", before.workers != after.workers);
    note("listener", before.listener != after.listener);
    note("steering", before.steering != after.steering);
    note("upstream", before.upstream != after.upstream);
    note("admin", before.admin != after.admin);
    note("security", before.security != after.security);
    note("log.format and log.level", {
        (before.log.format, &before.log.level) != (after.log.format, &after.log.level)
    });
    note(
        "discovery.netns_dir",
        before.discovery.netns_dir != after.discovery.netns_dir,
    );
    changed
}

fn kernel_release() -> String {
    nix::sys::utsname::uname()
        .map(|uname| uname.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

fn pidfd(pid: u32) -> std::io::Result<std::os::fd::OwnedFd> {
    use std::os::fd::FromRawFd as _;
    // SAFETY: the call takes two integers and returns a new descriptor or an error.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(std::io::Error::other)?;
    // SAFETY: the kernel just made this descriptor for us.
    Ok(unsafe { std::os::fd::OwnedFd::from_raw_fd(fd) })
}
