//! The agent as a whole: puts its parts together, starts them in order, and ends them in order.
//!
//! One thread with a runtime runs everything that changes the node (the registry, discovery, the
//! sockets for operators and stand-ins, signals); the workers serve.

mod control;
mod exposition;
mod lines;
mod logging;
mod registrations;
mod settings;
pub mod workers;

use std::{
    collections::HashSet,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry as MetricsRegistry;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use self::{
    control::NodeControl,
    settings::SettingsFactory,
    workers::{WorkerThreads, Workers},
};
use crate::{
    access::Metrics,
    admin::AdminServer,
    admission::{Caps, Limits, RateLimiter},
    cli::{Exit, Failure},
    config::{Config, ConfigSources},
    discovery::Discovery,
    kernel::{
        self, AttachType, Decision, EbpfKernel, Engine, EngineFacts, Kernel, KernelOptions, Mounts,
        NetnsCookie, PlainKernel,
    },
    listener,
    netns::NetnsThread,
    register, serve,
    tenants::{Backoff, Command, OnSettled, Registry, RegistryHandle, RegistryParts, SettingsOf},
};

/// How many guest addresses the rate limiter remembers, and how many of one tenant: haproxy's
/// tables hold 10,240 each.
const RATE_TRACKED: usize = 262_144;
const RATE_TRACKED_PER_TENANT: usize = 10_240;

/// The two ways in which serving ends.
#[derive(Clone, Default)]
pub struct Ends {
    /// Accept nothing more, finish what is in flight.
    pub stopping: CancellationToken,
    /// Drop what is in flight too.
    pub aborting: CancellationToken,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// Whatever keeps it from starting, with what to do about it. Once it runs, failures are logged,
/// shown in `status`, and dealt with.
pub fn run(config: Config, sources: ConfigSources) -> anyhow::Result<()> {
    let _logging = logging::start(&config.log)?;
    raise_file_limit();
    if let Some(warning) = too_few_files(&config) {
        warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make the control runtime")?;
    runtime.block_on(async {
        let node = Running::start(config, sources).await?;
        node.until_ended().await
    })
}

/// As many files as we may: a listener and a netlink socket for each tenant, and the connections.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        warn!(%error, "cannot raise the limit of open files to what is allowed");
    }
}

/// The agent while it runs.
struct Running {
    config: Arc<ArcSwap<Config>>,
    control: Arc<NodeControl>,
    node: Arc<serve::Node>,
    ends: Ends,
    threads: WorkerThreads,
    workers: Workers,
    programs: Option<Arc<EbpfKernel>>,
    registry: RegistryHandle,
    registry_task: JoinHandle<()>,
    /// Everything that may be stopped without order.
    tasks: Vec<JoinHandle<()>>,
    sockets_stop: CancellationToken,
    signals: Signals,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

impl Running {
    async fn start(config: Config, sources: ConfigSources) -> anyhow::Result<Self> {
        let signals = Signals::listen().context("cannot listen for signals")?;
        let started = Instant::now();
        let own_cookie = listener::netns_cookie().context(
            "this kernel cannot tell which namespace a connection belongs to (SO_NETNS_COOKIE, \
             Linux 5.14): no connection could be proved to come from a tenant",
        )?;
        // First of all, since they say whether another agent is running.
        let admin = AdminServer::bind(&config.admin.socket)?;
        let register = register::Listener::bind(&config.admin.register_socket)?;

        let engine = engine(&config)?;
        let programs = load_programs(&config, &engine)?.map(Arc::new);
        let kernel: Arc<dyn Kernel> = match &programs {
            Some(programs) => Arc::clone(programs) as Arc<dyn Kernel>,
            None => Arc::new(PlainKernel::default()),
        };
        let mut metrics_registry = MetricsRegistry::with_prefix("metadata_proxy");
        let ends = Ends::default();
        let node = Arc::new(serve::Node::new(
            Arc::clone(&kernel),
            Limits::new(caps(&config)),
            RateLimiter::new(RATE_TRACKED, RATE_TRACKED_PER_TENANT),
            Metrics::new(&mut metrics_registry),
            ends.clone(),
        ));
        let (workers, threads) =
            Workers::start(worker_count(&config), &node).context("cannot start the workers")?;
        let netns = NetnsThread::start().context("cannot start the namespace thread")?;

        let factory = SettingsFactory::new(&config).await?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let mut tasks = Vec::new();
        if let Some(embedded) = factory.embedded() {
            tasks.push(tokio::spawn(embedded.watch()));
        }
        let factory = Arc::new(factory);
        let (registry, handle) = Registry::new(RegistryParts {
            kernel: Arc::clone(&kernel),
            netns: netns.clone(),
            workers: workers.clone(),
            settings: factory.node_settings(),
            settings_of: settings_of(&factory),
            engine: engine.engine,
            port: config.load().listener.port,
            own_cookie,
            backoff: backoff(&config.load()),
            on_settled: on_settled(programs.clone()),
        });
        let registry_task = tokio::spawn(registry.run());
        let discovery = Discovery::new(
            Arc::clone(&config),
            Arc::clone(&kernel),
            netns,
            handle.clone(),
        );
        let (discovering, is_scanned) = discover(discovery);
        tasks.push(discovering);

        let sockets_stop = CancellationToken::new();
        tasks.push(registrations::serve_registrations(
            register,
            &config,
            &handle,
            sockets_stop.clone(),
        )?);
        let control = Arc::new(NodeControl {
            config: Arc::clone(&config),
            sources,
            started,
            engine: engine.clone(),
            kernel,
            node: Arc::clone(&node),
            registry: handle.clone(),
            factory,
            metrics: metrics_registry,
            is_scanned,
        });
        tasks.push(serve_operators(
            admin,
            Arc::clone(&control),
            sockets_stop.clone(),
        ));
        info!(
            version = env!("CARGO_PKG_VERSION"),
            engine = engine.engine.word(),
            attach = engine.attach.map(AttachType::word),
            "metadata-proxy started"
        );
        Ok(Self {
            config,
            control,
            node,
            ends,
            threads,
            workers,
            programs,
            registry: handle,
            registry_task,
            tasks,
            sockets_stop,
            signals,
        })
    }

    /// Waits for a signal to end, reloading on `SIGHUP`, then ends everything in order.
    async fn until_ended(mut self) -> anyhow::Result<()> {
        loop {
            let Signals {
                terminate,
                interrupt,
                hangup,
            } = &mut self.signals;
            tokio::select! {
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => {
                    use crate::admin::Control as _;
                    // Both outcomes are logged where they happen.
                    let _ = self.control.reload().await;
                }
            }
        }
        let grace = self.config.load().shutdown.grace;
        info!(grace = ?grace, connections = self.node.open_connections(), "draining");
        tell_service_manager(NotifyState::Stopping);
        // Nothing new is steered here from now on; what was accepted is served to its end.
        let (quiet, is_quiet) = oneshot::channel();
        self.registry.send(Command::Quiesce(quiet)).await;
        let _ = is_quiet.await;
        self.ends.stopping.cancel();
        tokio::select! {
            () = self.node.connections_over() => {}
            () = tokio::time::sleep(grace) => warn!("grace period over; open connections are dropped"),
            () = self.signals.end() => warn!("told twice; open connections are dropped"),
        }
        self.ends.aborting.cancel();
        let (down, is_down) = oneshot::channel();
        self.registry.send(Command::Shutdown(down)).await;
        let _ = is_down.await;
        let _ = self.registry_task.await;
        self.sockets_stop.cancel();
        for task in self.tasks {
            // Those that serve sockets remove their files; the others just stop.
            let ended = tokio::time::timeout(Duration::from_millis(200), task);
            let _ = ended.await;
        }
        drop(self.workers);
        self.threads.join();
        if let Some(programs) = &self.programs {
            programs.remove_pins();
        }
        info!("ended");
        Ok(())
    }
}

fn settings_of(factory: &Arc<SettingsFactory>) -> SettingsOf {
    let factory = Arc::clone(factory);
    Box::new(move |node, declaration| factory.of(node, declaration))
}

fn backoff(config: &Config) -> Backoff {
    Backoff {
        min: config.discovery.retry_min,
        max: config.discovery.retry_max,
    }
}

fn on_settled(programs: Option<Arc<EbpfKernel>>) -> OnSettled {
    Box::new(move |served| {
        if let Some(programs) = programs {
            forget_earlier_run(&programs, served);
        }
    })
}

/// Forgets what an earlier run left and this one has no use for.
fn forget_earlier_run(programs: &EbpfKernel, served: &HashSet<NetnsCookie>) {
    programs.remove_orphans(|cookie| served.contains(&cookie));
    match programs.remove_stale_declarations(|cookie| served.contains(&cookie)) {
        Ok(0) => {}
        Ok(count) => info!(count, "forgot tenants of an earlier run"),
        Err(error) => warn!(%error, "cannot forget tenants of an earlier run"),
    }
}

/// The engine this node gets.
fn engine(config: &Config) -> anyhow::Result<Decision> {
    let facts = EngineFacts::ask().context("cannot ask what this kernel offers")?;
    Ok(kernel::choose_engine(&facts, &config.steering)
        .map_err(|refusal| Failure::new(Exit::Node, refusal.to_string()))?)
}

/// Loads the kernel programs, unless the engine needs none and none are wished for.
fn load_programs(config: &Config, engine: &Decision) -> anyhow::Result<Option<EbpfKernel>> {
    if engine.engine == Engine::Bind && !config.steering.connect_hooks {
        return Ok(None);
    }
    let kernel = EbpfKernel::load(KernelOptions {
        bpffs_dir: config.steering.bpffs_dir.clone(),
        listener_port: config.listener.port,
        listener_v4_only: !listener::kernel_has_ipv6(),
        max_tenants: config.steering.max_tenants,
        debug_log: config.steering.debug_log,
    })?;
    if config.steering.connect_hooks {
        let mounts =
            Mounts::of_this_process().context("cannot look for the cgroup v2 hierarchy")?;
        let root = || mounts.cgroup2().map(Path::to_owned);
        let Some(cgroup) = config.steering.cgroup.clone().or_else(root) else {
            bail!(
                "no cgroup v2 hierarchy is mounted, which the connect hooks need: mount one, or \
                 set steering.connect_hooks to false"
            );
        };
        if let Err(error) = kernel.attach_cgroup_hooks(&cgroup) {
            kernel.remove_pins();
            return Err(error.into());
        }
    }
    Ok(Some(kernel))
}

fn worker_count(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, Into::into),
        count => count,
    }
}

/// Most connections for which there may be file descriptors: half of what this process may have. The
/// other half is for tenants and upstreams, without which connections are of no use to anybody.
fn connections_borne() -> u32 {
    let (limit, _) = getrlimit(Resource::RLIMIT_NOFILE).unwrap_or((u64::MAX, u64::MAX));
    u32::try_from(limit / 2).unwrap_or(u32::MAX)
}

/// What is to be said if there are not descriptors for as many connections as are configured.
fn too_few_files(config: &Config) -> Option<String> {
    let (wanted, borne) = (config.limits.connections, connections_borne());
    (usize::try_from(borne).is_ok_and(|borne| borne < wanted)).then(|| {
        format!(
            "the limit of open files bears {borne} connections, not limits.connections = {wanted}: \
             raise LimitNOFILE"
        )
    })
}

fn caps(config: &Config) -> Caps {
    let bounded = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Caps {
        connections: bounded(config.limits.connections).min(connections_borne()),
        connections_per_tenant: bounded(config.limits.connections_per_tenant),
        connections_per_guest: bounded(config.limits.connections_per_guest),
        requests_per_guest: bounded(config.limits.requests_in_flight_per_guest),
    }
}

/// Starts to look for tenants; the other half tells when the first scan is over.
fn discover(discovery: Discovery) -> (JoinHandle<()>, watch::Receiver<bool>) {
    let (scanned, is_scanned) = watch::channel(false);
    let discovering = discovery.run(move || {
        scanned.send_replace(true);
        tell_service_manager(NotifyState::Ready);
    });
    (tokio::spawn(discovering), is_scanned)
}

/// Tells systemd, if it started us and wants to know (`Type=notify`).
fn tell_service_manager(state: NotifyState) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "cannot tell the service manager");
    }
}

/// Serves the admin socket.
fn serve_operators(
    admin: AdminServer,
    control: Arc<NodeControl>,
    stop: CancellationToken,
) -> JoinHandle<()> {
    tokio::spawn(async move {
        if let Err(error) = admin.serve(control, stop).await {
            error!(%error, "the admin socket is not served");
        }
    })
}
