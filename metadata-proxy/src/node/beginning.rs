//! What a process begins with that another one had: nothing, what its predecessor hands over, or what
//! the service manager has kept.

use std::{
    collections::{HashMap, HashSet},
    path::Path,
    sync::Arc,
    time::Instant,
};

use anyhow::{Context as _, bail};
use arc_swap::ArcSwap;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::{control::watch_process, registrations, sockets::Sockets};
use crate::{
    admin::api::{TenantState, TenantStatus},
    admission::rate::WindowRecord,
    config::Config,
    kernel::{Engine, NetnsCookie},
    netns::NetnsId,
    serve,
    service_manager::{FdStore, Returned},
    takeover::{Begun, Committed, Handed, HandedDeclaration, OfferedNode, Received, State},
    tenants::{
        Command, Declaration, Giving, HandOver, KeptListeners, Provider, RegistryHandle, Source,
    },
};

/// What there is to begin with.
#[derive(Default)]
pub(super) struct Beginning {
    /// Sockets that were open before.
    pub(super) kept: Arc<KeptListeners>,
    /// Namespaces whose stand-in ended.
    pub(super) suspended: HashSet<NetnsId>,
    /// Namespaces that a predecessor serves.
    served: HashMap<NetnsId, String>,
    declarations: Vec<(NetnsId, HandedDeclaration)>,
    windows: Vec<WindowRecord>,
    /// By which names the service manager keeps listeners.
    stored: HashMap<NetnsCookie, crate::service_manager::Stored>,
}

impl Beginning {
    /// With what the service manager has kept.
    pub(super) fn with_returned(returned: Returned) -> Self {
        let mut beginning = Self::default();
        for (stored, socket) in returned.listeners {
            match beginning.kept.keep(socket, stored.cookie) {
                Ok(()) => {
                    beginning.stored.insert(stored.cookie, stored);
                }
                Err(error) => {
                    warn!(%error, tenant = %stored.tenant, "a stored listener is of no use");
                }
            }
        }
        match returned.state.map(State::read) {
            Some(Ok(state)) => {
                beginning.windows = state.windows;
                beginning.with_declared(state.tenants);
            }
            Some(Err(error)) => warn!(%error, "what was left for this process is of no use"),
            None => {}
        }
        beginning
    }

    /// Goes on with the limiter's windows.
    pub(super) fn resume(&mut self, serving: &serve::Node) {
        let windows = std::mem::take(&mut self.windows);
        serving.rates.resume(&windows, Instant::now());
    }

    /// With what a predecessor hands over.
    pub(super) fn with_handed(&mut self, mut tenants: Vec<Handed>) -> anyhow::Result<()> {
        info!(namespaces = tenants.len(), "taking over");
        for tenant in &mut tenants {
            if !tenant.listeners.is_empty() {
                self.served.insert(
                    tenant.netns,
                    format!("{} in {}", tenant.tenant, tenant.name),
                );
                self.stored.insert(
                    tenant.cookie,
                    crate::service_manager::Stored {
                        tenant: tenant.tenant,
                        cookie: tenant.cookie,
                    },
                );
            }
            for listener in tenant.listeners.drain(..) {
                let kept = self.kept.keep(listener, tenant.cookie);
                kept.with_context(|| format!("a listener of {} is of no use", tenant.tenant))?;
            }
        }
        self.with_declared(tenants);
        Ok(())
    }

    fn with_declared(&mut self, tenants: Vec<Handed>) {
        for tenant in tenants {
            if tenant.is_suspended {
                self.suspended.insert(tenant.netns);
            }
            let declarations = tenant.declarations.into_iter();
            self.declarations
                .extend(declarations.map(|declaration| (tenant.netns, declaration)));
        }
    }

    /// Declares what no look at the node would find. Returns what stand-ins have registered.
    pub(super) async fn declare(
        &mut self,
        config: &Config,
        registry: &RegistryHandle,
    ) -> HashSet<NetnsId> {
        let mut registered = HashSet::new();
        for (netns, handed) in self.declarations.drain(..) {
            if let Source::Path(path) = &handed.source
                && !NetnsId::of_path(path).is_ok_and(|now| now == netns)
            {
                info!(tenant = %handed.tenant, "a namespace is gone that was added by hand");
                continue;
            }
            let interfaces = match handed.provider {
                Provider::Register => {
                    registered.insert(netns);
                    registrations::interfaces(config)
                }
                _ => config.interfaces.of(handed.tenant.kind).to_vec(),
            };
            if let Source::Path(path) = &handed.source
                && let Some(pid) = process_of(path)
                && let Err(error) = watch_process(registry, pid, netns)
            {
                info!(tenant = %handed.tenant, %error, "its process is gone");
                continue;
            }
            let declaration = Declaration {
                provider: handed.provider,
                tenant: handed.tenant,
                name: handed.name,
                netns,
                source: handed.source,
                interfaces,
                settings: handed.settings.map(Arc::new),
            };
            if let Err(error) = registry.declare(declaration).await {
                warn!(%error, tenant = %handed.tenant, "cannot go on with a tenant");
            }
        }
        registered
    }

    /// Makes sure that nobody whom the predecessor serves is lost.
    pub(super) fn check_served(&self, tenants: &[TenantStatus]) -> anyhow::Result<()> {
        for tenant in tenants {
            let lost = self
                .served
                .iter()
                .find(|(netns, _)| netns.inode() == tenant.netns_inode);
            if let Some((_, name)) = lost
                && tenant.state == TenantState::Failing
            {
                let reason = tenant.reason.as_deref().unwrap_or_default();
                bail!("{name} could not be served here: {reason}");
            }
        }
        Ok(())
    }

    /// Closes listeners of namespaces that nobody declares.
    pub(super) fn give_up(&self, store: &FdStore) {
        for cookie in self.kept.give_up() {
            if let Some(stored) = self.stored.get(&cookie) {
                info!(tenant = %stored.tenant, "nobody declares this tenant any more");
                store.forget(stored.tenant, cookie);
            }
        }
    }
}

/// The process of `/proc/<pid>/ns/net`.
fn process_of(path: &Path) -> Option<u32> {
    let rest = path.strip_prefix("/proc").ok()?;
    let (pid, rest) = rest.to_str()?.split_once('/')?;
    (rest == "ns/net").then(|| pid.parse().ok())?
}

/// Makes sure that listeners and pins of the predecessor are of use here.
pub(super) fn check_fits(
    before: &OfferedNode,
    engine: Engine,
    config: &Config,
) -> anyhow::Result<()> {
    let mut differs = Vec::new();
    if before.engine != engine.word() {
        differs.push("steering.engine");
    }
    if before.port != config.listener.port {
        differs.push("listener.port");
    }
    if before.bpffs_dir != config.steering.bpffs_dir {
        differs.push("steering.bpffs_dir");
    }
    if !differs.is_empty() {
        bail!(
            "the running agent has another {}: that takes a stop and a start",
            differs.join(" and ")
        );
    }
    Ok(())
}

/// What the next process cannot find out, for the service manager to keep until it begins. From then
/// on nothing on the node is changed here.
pub(super) async fn left(registry: &RegistryHandle, serving: &serve::Node) -> State {
    let (tell, told) = oneshot::channel();
    let (outcome, heard) = oneshot::channel();
    let giving = Giving {
        tell,
        outcome: heard,
    };
    registry.send(Command::Give(giving)).await;
    let tenants = told.await.unwrap_or_default();
    let _ = outcome.send(HandOver::Taken);
    State {
        tenants,
        windows: serving.rates.windows(Instant::now()),
    }
}

/// Asks for everything, on a thread that may wait.
pub(super) async fn receive(begun: Begun) -> anyhow::Result<Received> {
    Ok(tokio::task::spawn_blocking(move || begun.receive()).await??)
}

/// Says that everything is served here, and goes on with the predecessor's windows.
async fn commit(received: Received, serving: &serve::Node) -> anyhow::Result<Committed> {
    let committed = tokio::task::spawn_blocking(move || received.ready()).await??;
    serving.rates.resume(&committed.windows, Instant::now());
    Ok(committed)
}

/// Says that connections are accepted here.
async fn taken(committed: Committed) -> anyhow::Result<()> {
    Ok(tokio::task::spawn_blocking(move || committed.taken()).await??)
}

/// Waits until everything is served here, then accepts in the place of the predecessor.
pub(super) async fn take_over(
    received: Received,
    (beginning, registry, mut is_scanned): (&Beginning, &RegistryHandle, watch::Receiver<bool>),
    node: &serve::Node,
    accepting: &CancellationToken,
    config: &ArcSwap<Config>,
) -> anyhow::Result<Sockets> {
    let _ = is_scanned.wait_for(|is_scanned| *is_scanned).await;
    if let Err(error) = beginning.check_served(&registry.list().await) {
        received.refuse(&format_args!("{error:#}"));
        return Err(error);
    }
    let before = received.offer.node.clone();
    let sockets = received.offer.take_sockets();
    let committed = commit(received, node).await?;
    accepting.cancel();
    taken(committed).await?;
    // Only now: whoever adopts a socket removes its file at the end.
    Sockets::adopt(sockets?, &before, &config.load())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_a_path() {
        let of = |path: &str| process_of(Path::new(path));
        assert_eq!(of("/proc/7/ns/net"), Some(7));
        for other in [
            "/run/netns/a",
            "/proc/self/ns/net",
            "/proc/7/ns/mnt",
            "/proc",
        ] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
