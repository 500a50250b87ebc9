//! The one task that owns every tenant: it brings them up, keeps them right, and takes them down.
//!
//! Commands are worked off one at a time, so no two of them ever act on the same namespace at once.
//! A tenant that fails waits for its retry and holds up no other.

mod audit;
mod giving;
mod handle;
mod keeping;
mod serving;
mod status;
mod turns;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    os::fd::OwnedFd,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use litemap::LiteMap;
use tokio::{sync::mpsc, task::JoinHandle, time::sleep_until};
use tracing::debug;

use self::audit::Audit;
pub use self::handle::{AddError, Command, Giving, HandOver, RegistryHandle};
use super::{
    Backoff, Counters, Declaration, Fault, KeptListeners, Phase, Probes, Provider, Repairs,
    Service, Settings, Source,
    life::Life,
    place::{self, Place},
};
use crate::{
    admin::api::TenantStatus,
    config::AuditConfig,
    identity::Tenant,
    kernel::{Engine, Kernel, NetnsCookie},
    netns::{NetnsId, NetnsThread},
    serve::Workers,
    service_manager::FdStore,
};

/// Commands that wait; a provider that sends more waits itself.
const INBOX: usize = 1024;
/// Every namespace is looked into within this many scans.
const LOOK_ROUNDS: usize = 256;
/// As many namespaces as are looked into after one scan in any case.
const LOOK_LEAST: usize = 4;

/// Called with the cookies of the namespaces served after the first scan.
pub type OnSettled = Box<dyn FnOnce(&HashSet<NetnsCookie>) + Send + Sync>;

/// Makes the settings of one tenant from the node's and its own.
pub type SettingsOf = Box<dyn Fn(&Arc<Settings>, &Declaration) -> Arc<Settings> + Send + Sync>;

/// Owns every tenant.
pub struct Registry {
    kernel: Arc<dyn Kernel>,
    netns: NetnsThread,
    workers: Workers,
    settings: Arc<Settings>,
    settings_of: SettingsOf,
    engine: Engine,
    port: u16,
    own_cookie: NetnsCookie,
    backoff: Backoff,
    entries: HashMap<NetnsId, Entry>,
    dirty: HashSet<NetnsId>,
    /// Those that wait for another try, and perhaps some that do not any more.
    retrying: HashSet<NetnsId>,
    /// Those whose turn to be looked into is still to come.
    unseen: VecDeque<NetnsId>,
    audit: Audit,
    probes: Arc<Probes>,
    repairs: Repairs,
    /// Whether some namespace changed and the inbox was too full to be told which.
    missed: Arc<AtomicBool>,
    is_quiet: bool,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    on_settled: Option<OnSettled>,
    kept: Arc<KeptListeners>,
    /// Namespaces whose stand-in ended under a predecessor.
    suspended: HashSet<NetnsId>,
    store: FdStore,
}

/// What a registry is made of.
pub struct RegistryParts {
    /// The kernel programs.
    pub kernel: Arc<dyn Kernel>,
    /// The thread that enters namespaces.
    pub netns: NetnsThread,
    /// Those who serve.
    pub workers: Workers,
    /// The node's settings.
    pub settings: Arc<Settings>,
    /// Makes the settings of one tenant.
    pub settings_of: SettingsOf,
    /// How connections are brought to listeners.
    pub engine: Engine,
    /// The listeners' port.
    pub port: u16,
    /// Cookie of the agent's own namespace.
    pub own_cookie: NetnsCookie,
    /// How long to wait after failures.
    pub backoff: Backoff,
    /// How often tenants are audited.
    pub audit: AuditConfig,
    /// Our own connections, as the workers know them.
    pub probes: Arc<Probes>,
    /// Counts what is put back.
    pub repairs: Repairs,
    /// Called once with the namespaces served after the first scan.
    pub on_settled: OnSettled,
    /// Sockets that were open before.
    pub kept: Arc<KeptListeners>,
    /// Namespaces whose stand-in ended under a predecessor.
    pub suspended: HashSet<NetnsId>,
    /// Where sockets are kept for a successor.
    pub store: FdStore,
}

struct Entry {
    /// Nearly always one, for which a tree would be twenty times as large.
    declarations: LiteMap<Provider, Declaration>,
    life: Life,
    counters: Arc<Counters>,
    served: Option<Served>,
}

struct Served {
    service: Arc<Service>,
    place: Place,
    /// A way back into the namespace that needs no path; does not keep more alive than the listener.
    handle: Arc<OwnedFd>,
    watcher: JoinHandle<()>,
    /// When it was brought up.
    since: Instant,
    /// When the audit last connected to it.
    connected: Option<Instant>,
    /// When its service was last proved by a connection.
    proved: Option<SystemTime>,
    /// What the last audit found wrong.
    fault: Option<Fault>,
}

impl Entry {
    fn declaration(&self) -> Option<&Declaration> {
        self.declarations.last().map(|(_, declaration)| declaration)
    }
}

impl Registry {
    /// Makes a registry and the handle to it.
    #[must_use]
    pub fn new(parts: RegistryParts) -> (Self, RegistryHandle) {
        let (sender, commands) = mpsc::channel(INBOX);
        let handle = RegistryHandle(sender.clone());
        let registry = Self {
            kernel: parts.kernel,
            netns: parts.netns,
            workers: parts.workers,
            settings: parts.settings,
            settings_of: parts.settings_of,
            engine: parts.engine,
            port: parts.port,
            own_cookie: parts.own_cookie,
            backoff: parts.backoff,
            entries: HashMap::new(),
            dirty: HashSet::new(),
            retrying: HashSet::new(),
            unseen: VecDeque::new(),
            audit: Audit::new(parts.audit),
            probes: parts.probes,
            repairs: parts.repairs,
            missed: Arc::default(),
            is_quiet: false,
            commands,
            sender,
            on_settled: Some(parts.on_settled),
            kept: parts.kept,
            suspended: parts.suspended,
            store: parts.store,
        };
        (registry, handle)
    }

    /// Works until [`Command::Shutdown`].
    pub async fn run(mut self) {
        loop {
            let audit = self.audit.next();
            let wake = self.next_retry().map_or(audit, |retry| retry.min(audit));
            if self.missed.swap(false, Ordering::Relaxed) {
                // Which namespaces changed is not known any more.
                self.dirty.extend(self.entries.keys());
            }
            tokio::select! {
                biased;
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => {
                        self.shut_down().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.obey(command).await,
                    None => return,
                },
                () = std::future::ready(()), if !self.dirty.is_empty() => self.converge_dirty().await,
                () = sleep_until(wake.into()) => {
                    self.retry().await;
                    if Instant::now() >= audit {
                        self.audit().await;
                    }
                }
            }
        }
    }

    async fn obey(&mut self, command: Command) {
        match command {
            Command::Declare(declaration, reply) => {
                let outcome = self.declare(declaration).await;
                if let Some(reply) = reply {
                    let _ = reply.send(outcome);
                } else if let Err(error) = outcome {
                    debug!(%error, "a declaration without effect");
                }
            }
            Command::Withdraw(netns, provider) => self.withdraw(netns, provider).await,
            Command::Gone(netns) => self.let_go(netns).await,
            Command::PathChanged(path) => self.withdraw_stale(Some(&path)).await,
            Command::Changed(netns) => {
                self.dirty.insert(netns);
            }
            Command::Scanned => {
                self.withdraw_stale(None).await;
                self.look_on();
            }
            Command::Audited(verdicts) => self.judge(verdicts),
            Command::Settled(done) => {
                self.converge_dirty().await;
                let _ = done.send(());
            }
            Command::ForgetEarlier => {
                if let Some(settled) = self.on_settled.take() {
                    settled(&self.cookies());
                }
            }
            Command::Give(giving) => self.give(giving).await,
            Command::Reconfigure(settings, audit, done) => {
                self.audit.set_periods(audit);
                self.reconfigure(settings);
                let _ = done.send(());
            }
            Command::List(reply) => {
                let _ = reply.send(self.list());
            }
            Command::Remove(tenant, reply) => {
                let _ = reply.send(self.remove(tenant).await);
            }
            Command::Quiesce(done) => {
                self.quiesce().await;
                let _ = done.send(());
            }
            // Ends the loop that calls this.
            Command::Shutdown(_) => {}
        }
    }

    /// Has the next few namespaces looked into, in turn: what changes in one is told by netlink, so
    /// that this need not be quick, and on a node with many tenants it would be dear.
    fn look_on(&mut self) {
        if self.unseen.is_empty() {
            self.unseen.extend(self.entries.keys());
        }
        let share = self.entries.len().div_ceil(LOOK_ROUNDS).max(LOOK_LEAST);
        let share = share.min(self.unseen.len());
        self.dirty.extend(self.unseen.drain(..share));
    }

    async fn remove(&mut self, tenant: Tenant) -> Option<bool> {
        let (netns, by_hand) = self.entries.iter().find_map(|(netns, entry)| {
            let declarations = &entry.declarations;
            declarations
                .values()
                .any(|declaration| declaration.tenant == tenant)
                .then(|| {
                    (
                        *netns,
                        declarations
                            .get(&Provider::Admin)
                            .is_some_and(|d| d.tenant == tenant),
                    )
                })
        })?;
        if by_hand {
            self.withdraw(netns, Provider::Admin).await;
        }
        Some(by_hand)
    }

    /// Withdraws what was added by hand by a path, that one or any, that stands for another
    /// namespace by now or for none: nobody else notices, and we would keep the namespace alive.
    async fn withdraw_stale(&mut self, only: Option<&Path>) {
        let stale: Vec<NetnsId> = self
            .entries
            .iter()
            .filter(|(netns, entry)| {
                let by_hand = entry.declarations.get(&Provider::Admin);
                by_hand.is_some_and(|declaration| match &declaration.source {
                    Source::Path(path) if only.is_none_or(|only| only == path) => {
                        !NetnsId::of_path(path).is_ok_and(|now| now == **netns)
                    }
                    Source::Path(_) | Source::File(_) => false,
                })
            })
            .map(|(netns, _)| *netns)
            .collect();
        for netns in stale {
            self.withdraw(netns, Provider::Admin).await;
        }
    }

    /// Detaches everywhere and leaves the rest in place: what was accepted needs route and listener.
    async fn quiesce(&mut self) {
        self.is_quiet = true;
        for entry in self.entries.values_mut() {
            let Some(served) = &mut entry.served else {
                continue;
            };
            let place = std::mem::replace(&mut served.place, Place::empty());
            let detached = serving::inside(
                &self.netns,
                &self.kernel,
                &served.handle,
                place,
                place::quiet,
            );
            if let Some(place) = detached.await {
                served.place = place;
            }
        }
    }

    fn cookies(&self) -> HashSet<NetnsCookie> {
        self.entries
            .values()
            .filter_map(|entry| Some(entry.served.as_ref()?.place.cookie))
            .collect()
    }

    async fn declare(&mut self, declaration: Declaration) -> Result<(), AddError> {
        let netns = declaration.netns;
        if declaration.provider == Provider::Admin
            && let Some(other) = self.entries.get(&netns).and_then(Entry::declaration)
            && other.tenant != declaration.tenant
        {
            return Err(AddError::Conflict(format!(
                "namespace {} belongs to {} already ({})",
                declaration.name,
                other.tenant,
                other.provider.label()
            )));
        }
        let backoff = self.backoff;
        let suspended = &mut self.suspended;
        let entry = self.entries.entry(netns).or_insert_with(|| {
            let mut life = Life::new(backoff);
            if suspended.remove(&netns) {
                life.suspended();
            }
            Entry {
                declarations: LiteMap::with_capacity(1),
                life,
                counters: Arc::default(),
                served: None,
            }
        });
        let before = entry.declaration().map(|declaration| declaration.tenant);
        entry
            .declarations
            .insert(declaration.provider, declaration.clone());
        if declaration.provider == Provider::Register && *entry.life.phase() == Phase::Suspended {
            entry.life.renewed();
        }
        let effective = entry.declaration().map(|declaration| declaration.tenant);
        if entry.served.is_some() && before != effective {
            self.take_down(netns).await;
        }
        self.bring_up(netns).await;
        match self.entries.get(&netns).map(|entry| entry.life.phase()) {
            Some(Phase::Failing { reason, .. }) => Err(AddError::Failing(reason.clone())),
            _ => Ok(()),
        }
    }

    fn retry_at(&self, netns: NetnsId) -> Option<Instant> {
        self.entries.get(&netns)?.life.retry_at()
    }

    fn next_retry(&self) -> Option<Instant> {
        let retrying = self.retrying.iter();
        retrying.filter_map(|netns| self.retry_at(*netns)).min()
    }

    async fn retry(&mut self) {
        if self.retrying.is_empty() {
            return;
        }
        let now = Instant::now();
        let mut retrying = std::mem::take(&mut self.retrying);
        retrying.retain(|netns| self.retry_at(*netns).is_some());
        let due = retrying.extract_if(|netns| self.retry_at(*netns).is_some_and(|at| at <= now));
        let due: Vec<_> = due.collect();
        self.retrying = retrying;
        for netns in due {
            self.bring_up(netns).await;
        }
    }

    fn reconfigure(&mut self, settings: Arc<Settings>) {
        self.settings = settings;
        for entry in self.entries.values() {
            if let (Some(declaration), Some(served)) = (entry.declaration(), &entry.served) {
                served
                    .service
                    .settings
                    .store((self.settings_of)(&self.settings, declaration));
            }
        }
    }

    fn list(&self) -> Vec<TenantStatus> {
        let mut list: Vec<_> = self
            .entries
            .iter()
            .filter_map(|(netns, entry)| status::status(*netns, entry, self.port))
            .collect();
        list.sort_by_key(|status| (status.kind, status.id));
        list
    }

    async fn shut_down(&mut self) {
        for netns in self.entries.keys().copied().collect::<Vec<_>>() {
            self.take_down(netns).await;
        }
    }
}
