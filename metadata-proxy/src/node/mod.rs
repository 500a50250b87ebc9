//! The agent as a whole: puts its parts together, starts them in order, and ends them in order.
//!
//! One thread with a runtime runs everything that changes the node (the registry, discovery, the
//! sockets for operators and stand-ins, signals); the workers serve.

mod beginning;
mod confine;
mod control;
mod ending;
mod exposition;
mod lines;
mod logging;
mod open_files;
mod prepared;
mod registrations;
mod settings;
mod sockets;
mod successor;
mod watchdog;

use std::{collections::HashSet, sync::Arc, time::Instant};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use prometheus_client::registry::Registry as MetricsRegistry;
use sd_notify::NotifyState;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::{oneshot, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::{
    beginning::Beginning, control::NodeControl, prepared::Prepared, settings::SettingsFactory,
    sockets::Stop,
};
use crate::{
    access::Metrics,
    admission::{Caps, Limits, RateLimiter},
    cli::Start,
    config::{Config, ConfigSources},
    discovery::Discovery,
    kernel::{AttachType, Decision, EbpfKernel, Kernel, NetnsCookie, PlainKernel},
    netns::NetnsThread,
    serve::{self, Ends, WorkerThreads, Workers},
    service_manager::{self, FdStore, Returned, ServiceManager},
    tenants::{
        Backoff, Command, OnSettled, Registry, RegistryHandle, RegistryParts, Repairs, SettingsOf,
    },
};

/// How many guest addresses the rate limiter remembers, and how many of one tenant: haproxy's
/// tables hold 10,240 each.
const RATE_TRACKED: usize = 262_144;
const RATE_TRACKED_PER_TENANT: usize = 10_240;

/// Runs the agent until it is told to end.
///
/// # Errors
/// Whatever keeps it from starting, with what to do about it. Once it runs, failures are logged,
/// shown in `status`, and dealt with.
pub fn run(config: Config, sources: ConfigSources, start: Start) -> anyhow::Result<()> {
    confine::drop_capabilities()?;
    confine::start_allocator_thread();
    let _logging = logging::start(&config.log)?;
    open_files::raise_limit();
    if let Some(warning) = open_files::too_few(&config) {
        warn!("{warning}");
    }
    let returned = service_manager::returned().context("what the service manager keeps for us")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot make the control runtime")?;
    runtime.block_on(async {
        let node = Running::start(config, sources, start, returned).await?;
        node.until_ended().await
    })
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
    sockets_stop: Stop,
    manager: ServiceManager,
    store: FdStore,
    /// The process id of a successor, once it has taken over.
    successor: Option<oneshot::Receiver<i32>>,
    signals: Signals,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// A restart: everything is left for the next process.
    leave: Signal,
}

/// Why the process ends.
enum End {
    /// For good: what we added is removed.
    Stop,
    /// Another process goes on with everything; its id, if it runs already.
    Leave(Option<i32>),
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            leave: signal(SignalKind::user_defined2())?,
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
    #[expect(
        clippy::too_many_lines,
        reason = "the order in which the parts are started, told in one place"
    )]
    async fn start(
        config: Config,
        sources: ConfigSources,
        start: Start,
        returned: Returned,
    ) -> anyhow::Result<Self> {
        let mut signals = Signals::listen().context("cannot listen for signals")?;
        let started = Instant::now();
        let Prepared {
            own_cookie,
            bound,
            received,
            mut beginning,
            engine,
            manager,
            programs,
        } = Prepared::new(&config, start, returned).await?;
        let store = FdStore::of(&manager);
        let kernel = kernel_of(programs.as_ref());
        let mut metrics_registry = MetricsRegistry::with_prefix("metadata_proxy");
        let ends = Ends::default();
        let node = Arc::new(serve::Node::new(
            Arc::clone(&kernel),
            Limits::new(caps(&config)),
            RateLimiter::new(RATE_TRACKED, RATE_TRACKED_PER_TENANT),
            Metrics::new(&mut metrics_registry),
            ends.clone(),
        ));
        beginning.resume(&node);
        store.forget_state();
        // Whoever connects before it is cancelled waits in the listener.
        let accepting = CancellationToken::new();
        let (workers, threads) = Workers::start(worker_count(&config), &node, &accepting)
            .context("cannot start the workers")?;
        let netns = NetnsThread::start().context("cannot start the namespace thread")?;

        let factory = SettingsFactory::new(&config).await?;
        let config = Arc::new(ArcSwap::from_pointee(config));
        let embedded = factory.embedded();
        let mut tasks: Vec<_> = embedded
            .map(|it| tokio::spawn(it.watch()))
            .into_iter()
            .collect();
        let factory = Arc::new(factory);
        let repairs = Repairs::new(&mut metrics_registry);
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
            audit: config.load().audit,
            probes: Arc::clone(&node.probes),
            repairs: repairs.clone(),
            on_settled: on_settled(programs.clone()),
            kept: Arc::clone(&beginning.kept),
            suspended: std::mem::take(&mut beginning.suspended),
            store: store.clone(),
        });
        let registry_task = tokio::spawn(registry.run());
        let inherited = beginning.declare(&config.load(), &handle).await;
        let discovery = Discovery::new(
            Arc::clone(&config),
            Arc::clone(&kernel),
            netns,
            handle.clone(),
        );
        let (discovering, is_scanned) = discover(discovery);
        tasks.push(discovering);

        let sockets = match (bound, received) {
            (Some(bound), _) => {
                accepting.cancel();
                bound
            }
            (None, Some(received)) => {
                let all = (&beginning, &handle, is_scanned.clone());
                tokio::select! {
                    sockets = beginning::take_over(received, all, &node, &accepting, &config) => sockets?,
                    () = signals.end() => bail!("told to end before everything was taken over"),
                }
            }
            (None, None) => bail!("there are no sockets"),
        };
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
            repairs,
            is_scanned: is_scanned.clone(),
        });
        confine::filter_syscalls(config.load().security.seccomp)?;
        let sockets_stop = Stop::default();
        let successor = sockets::serve(
            sockets,
            &control,
            &manager,
            inherited,
            &sockets_stop,
            &mut tasks,
        )?;
        tasks.push(tokio::spawn(settle_in(
            is_scanned,
            handle.clone(),
            manager.clone(),
            beginning,
            store.clone(),
        )));
        tasks.push(tokio::spawn(watchdog::watch(
            manager.clone(),
            workers.clone(),
        )));
        tell_started(&engine);
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
            manager,
            store,
            successor,
            signals,
        })
    }

    /// Waits for a reason to end, reloading on `SIGHUP`, then ends everything in order.
    async fn until_ended(mut self) -> anyhow::Result<()> {
        let end = loop {
            let Signals {
                terminate,
                interrupt,
                hangup,
                leave,
            } = &mut self.signals;
            tokio::select! {
                _ = terminate.recv() => break End::Stop,
                _ = interrupt.recv() => break End::Stop,
                _ = leave.recv() => break End::Leave(None),
                pid = successor(&mut self.successor) => break End::Leave(Some(pid)),
                _ = hangup.recv() => {
                    use crate::admin::Control as _;
                    // Both outcomes are logged where they happen.
                    let _ = self.control.reload().await;
                }
            }
        };
        match end {
            End::Stop => self.stop().await,
            End::Leave(successor) => self.leave(successor).await,
        }
    }
}

/// The process id of a successor that has taken over; never, if there can be none.
async fn successor(taken: &mut Option<oneshot::Receiver<i32>>) -> i32 {
    if let Some(is_taken) = taken {
        if let Ok(pid) = is_taken.await {
            return pid;
        }
        *taken = None;
    }
    std::future::pending().await
}

/// What is to be done once everything is served that was found first.
async fn settle_in(
    mut is_scanned: watch::Receiver<bool>,
    registry: RegistryHandle,
    manager: ServiceManager,
    beginning: Beginning,
    store: FdStore,
) {
    let _ = is_scanned.wait_for(|is_scanned| *is_scanned).await;
    registry.send(Command::ForgetEarlier).await;
    manager.tell(&[NotifyState::Ready]);
    // Stand-ins that registered with a predecessor are back by then.
    tokio::time::sleep(registrations::INHERITED_FOR).await;
    beginning.give_up(&store);
}

fn tell_started(engine: &Decision) {
    info!(
        version = env!("CARGO_PKG_VERSION"),
        engine = engine.engine.word(),
        attach = engine.attach.map(AttachType::word),
        "metadata-proxy started"
    );
}

fn kernel_of(programs: Option<&Arc<EbpfKernel>>) -> Arc<dyn Kernel> {
    match programs {
        Some(programs) => Arc::clone(programs) as Arc<dyn Kernel>,
        None => Arc::new(PlainKernel::default()),
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

fn worker_count(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, Into::into),
        count => count,
    }
}

fn caps(config: &Config) -> Caps {
    let bounded = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    Caps {
        connections: bounded(config.limits.connections).min(open_files::connections_borne()),
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
    });
    (tokio::spawn(discovering), is_scanned)
}
