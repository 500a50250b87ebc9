//! What is settled before anything is served: who runs already, which engine, the kernel programs.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, bail};
use tracing::info;

use super::{
    beginning::{self, Beginning},
    sockets::Sockets,
};
use crate::{
    cli::{Exit, Failure, Start},
    config::Config,
    kernel::{self, Decision, EbpfKernel, Engine, EngineFacts, KernelOptions, Mounts, NetnsCookie},
    listener,
    service_manager::{Returned, ServiceManager},
    takeover,
};

/// What is settled before anything is served.
pub(super) struct Prepared {
    pub(super) own_cookie: NetnsCookie,
    /// Our sockets, unless a predecessor still has them.
    pub(super) bound: Option<Sockets>,
    pub(super) received: Option<takeover::Received>,
    pub(super) beginning: Beginning,
    pub(super) engine: Decision,
    pub(super) manager: ServiceManager,
    pub(super) programs: Option<Arc<EbpfKernel>>,
}

impl Prepared {
    pub(super) async fn new(
        config: &Config,
        start: Start,
        returned: Returned,
    ) -> anyhow::Result<Self> {
        let own_cookie = listener::netns_cookie().context(
            "this kernel cannot tell which namespace a connection belongs to (SO_NETNS_COOKIE, \
             Linux 5.14): no connection could be proved to come from a tenant",
        )?;
        // First of all, since these say whether another agent is running.
        let before = predecessor(start, config)?;
        let bound = match before {
            None => Some(Sockets::bind(config)?),
            Some(_) => None,
        };
        let engine = engine(config)?;
        let mut beginning = Beginning::with_returned(returned);
        let mut manager = ServiceManager::from_environment();
        // From here on until it hears that we accept, the predecessor changes nothing on the node.
        let received = match before {
            Some(begun) => {
                let mut received = beginning::receive(begun).await?;
                let offer = &mut received.offer;
                let tenants = std::mem::take(&mut offer.tenants);
                let fits = beginning::check_fits(&offer.node, engine.engine, config)
                    .and_then(|()| beginning.with_handed(tenants));
                if let Err(error) = fits {
                    received.refuse(&format_args!("{error:#}"));
                    return Err(error);
                }
                let node = &received.offer.node;
                let watchdog = node.watchdog_ms.map(Duration::from_millis);
                manager = manager.or(node.notify_socket.as_deref(), watchdog);
                Some(received)
            }
            None => None,
        };
        let programs = load_programs(config, &engine, received.is_some())?.map(Arc::new);
        Ok(Self {
            own_cookie,
            bound,
            received,
            beginning,
            engine,
            manager,
            programs,
        })
    }
}

/// The agent that runs, if this one is to take over from it.
fn predecessor(start: Start, config: &Config) -> anyhow::Result<Option<takeover::Begun>> {
    if start == Start::Afresh {
        return Ok(None);
    }
    let begun = takeover::begin(&takeover::socket_path(&config.admin.socket))?;
    if begun.is_none() {
        info!("no agent runs from which to take over; starting afresh");
    }
    Ok(begun)
}

/// The engine this node gets.
fn engine(config: &Config) -> anyhow::Result<Decision> {
    let facts = EngineFacts::ask().context("cannot ask what this kernel offers")?;
    Ok(kernel::choose_engine(&facts, &config.steering)
        .map_err(|refusal| Failure::new(Exit::Node, refusal.to_string()))?)
}

/// Loads the kernel programs, unless the engine needs none and none are wished for. What is pinned
/// is not ours to remove while another process uses it.
fn load_programs(
    config: &Config,
    engine: &Decision,
    is_in_use: bool,
) -> anyhow::Result<Option<EbpfKernel>> {
    if engine.engine == Engine::Bind && !config.steering.connect_hooks {
        return Ok(None);
    }
    let kernel = EbpfKernel::load(KernelOptions {
        bpffs_dir: config.steering.bpffs_dir.clone(),
        listener_port: config.listener.port,
        listener_v4_only: !listener::kernel_has_ipv6(),
        max_tenants: config.steering.max_tenants,
        rcu_expedited: config.steering.rcu_expedited,
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
            if !is_in_use {
                kernel.remove_pins();
            }
            return Err(error.into());
        }
    }
    Ok(Some(kernel))
}
