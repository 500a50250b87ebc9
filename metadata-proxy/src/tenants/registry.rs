//! The one task that owns every tenant: it brings them up, keeps them right, and takes them down.
//!
//! Commands are worked off one at a time, so no two of them ever act on the same namespace at once.
//! A tenant that fails waits for its retry and holds up no other.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::{mpsc, oneshot},
    task::JoinHandle,
    time::sleep_until,
};
use tracing::{debug, error, info, warn};

use super::{
    Backoff, Counters, Declaration, Phase, Plan, Provider, Service, Settings,
    life::Life,
    place::{self, Opened, Place, PlaceError},
};
use crate::{
    admin::api::{Counts, InterfaceState, InterfaceStatus, TenantState, TenantStatus},
    identity::Tenant,
    kernel::{Engine, Kernel, NetnsCookie},
    netns::{Netns, NetnsError, NetnsId, NetnsThread},
    node::workers::Workers,
};

/// Commands that wait; a provider that sends more waits itself.
const INBOX: usize = 1024;

/// Why a tenant could not be added by hand.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Another namespace serves that tenant, or another tenant that namespace.
    #[error("{0}")]
    Conflict(String),
    /// It is declared, but could not be brought up yet.
    #[error("declared, but not served yet: {0}")]
    Failing(String),
}

/// What the registry is asked to do.
pub enum Command {
    /// A provider declares a tenant.
    Declare(Declaration, Option<oneshot::Sender<Result<(), AddError>>>),
    /// A provider takes its declaration back.
    Withdraw(NetnsId, Provider),
    /// Something changed inside a namespace.
    Changed(NetnsId),
    /// Look whether everything is as it should be.
    Audit,
    /// The first scan is over: forget what an earlier process left.
    Settled,
    /// Use these settings from now on.
    Reconfigure(Arc<Settings>),
    /// Tell how every tenant is doing.
    List(oneshot::Sender<Vec<TenantStatus>>),
    /// A tenant that was added by hand is to go; answers whether it was, `None` if it is not known.
    Remove(Tenant, oneshot::Sender<Option<bool>>),
    /// Steer nothing more; what is open goes on.
    Quiesce(oneshot::Sender<()>),
    /// Take everything down; the registry ends.
    Shutdown(oneshot::Sender<()>),
}

/// Sends commands to the registry.
#[derive(Clone)]
pub struct RegistryHandle(mpsc::Sender<Command>);

impl RegistryHandle {
    /// Sends a command, waiting while the registry is busy. Lost when the process is ending.
    pub async fn send(&self, command: Command) {
        let _ = self.0.send(command).await;
    }

    /// Tells how every tenant is doing.
    pub async fn list(&self) -> Vec<TenantStatus> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::List(reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Takes back a declaration made by hand; false if others declare the tenant, `None` if nobody.
    pub async fn remove(&self, tenant: Tenant) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Remove(tenant, reply)).await;
        answer.await.unwrap_or_default()
    }

    /// Declares a tenant and waits for the outcome of the first attempt.
    ///
    /// # Errors
    /// [`AddError`].
    pub async fn declare(&self, declaration: Declaration) -> Result<(), AddError> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Declare(declaration, Some(reply))).await;
        answer
            .await
            .unwrap_or_else(|_| Err(AddError::Failing("the agent is ending".to_owned())))
    }
}

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
    is_quiet: bool,
    commands: mpsc::Receiver<Command>,
    sender: mpsc::Sender<Command>,
    on_settled: Option<Box<dyn FnOnce(&HashSet<NetnsCookie>) + Send + Sync>>,
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
    /// Called once with the namespaces served after the first scan.
    pub on_settled: Box<dyn FnOnce(&HashSet<NetnsCookie>) + Send + Sync>,
}

struct Entry {
    declarations: BTreeMap<Provider, Declaration>,
    life: Life,
    counters: Arc<Counters>,
    served: Option<Served>,
}

struct Served {
    service: Arc<Service>,
    place: Place,
    /// A way back into the namespace that needs no path; does not keep more alive than the listener.
    handle: OwnedFd,
    watcher: JoinHandle<()>,
    /// Whether its entry in the map is somebody else's.
    is_foreign: bool,
}

impl Entry {
    fn declaration(&self) -> Option<&Declaration> {
        self.declarations
            .last_key_value()
            .map(|(_, declaration)| declaration)
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
            is_quiet: false,
            commands,
            sender,
            on_settled: Some(parts.on_settled),
        };
        (registry, handle)
    }

    /// Works until [`Command::Shutdown`].
    pub async fn run(mut self) {
        loop {
            let retry = self.next_retry();
            let wake = retry.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
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
                () = sleep_until(wake.into()) => self.retry().await,
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
            Command::Changed(netns) => {
                self.dirty.insert(netns);
            }
            Command::Audit => {
                let served = self
                    .entries
                    .iter()
                    .filter(|(_, entry)| entry.served.is_some());
                self.dirty.extend(served.map(|(netns, _)| *netns));
            }
            Command::Settled => {
                if let Some(settled) = self.on_settled.take() {
                    settled(&self.cookies());
                }
            }
            Command::Reconfigure(settings) => self.reconfigure(settings),
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

    /// Detaches everywhere and leaves the rest in place: what was accepted needs route and listener.
    async fn quiesce(&mut self) {
        self.is_quiet = true;
        for entry in self.entries.values_mut() {
            let Some(served) = &mut entry.served else {
                continue;
            };
            let attachments = std::mem::take(&mut served.place.attachments);
            let kernel = Arc::clone(&self.kernel);
            let cookie = served.place.cookie;
            let detach = move || {
                for attachment in attachments.values() {
                    if let Err(error) = kernel.detach(cookie, attachment) {
                        warn!(%error, "left steer attached");
                    }
                }
            };
            match Netns::of_socket(&served.handle) {
                Ok(netns) => {
                    if let Err(error) = self.netns.run(netns, detach).await {
                        warn!(%error, "cannot detach before draining");
                    }
                }
                Err(error) => warn!(%error, "cannot detach before draining"),
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
        if let Some((_, other)) = self.entries.iter().find(|(id, entry)| {
            **id != netns
                && entry
                    .declaration()
                    .is_some_and(|other| other.tenant == declaration.tenant)
        }) {
            let other = other
                .declaration()
                .map(|other| other.name.clone())
                .unwrap_or_default();
            let conflict = format!(
                "{} is served in namespace {other} already; remove it there first",
                declaration.tenant
            );
            warn!(namespace = declaration.name, "{conflict}");
            return Err(AddError::Conflict(conflict));
        }
        let backoff = self.backoff;
        let entry = self.entries.entry(netns).or_insert_with(|| Entry {
            declarations: BTreeMap::new(),
            life: Life::new(backoff),
            counters: Arc::default(),
            served: None,
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

    async fn withdraw(&mut self, netns: NetnsId, provider: Provider) {
        let Some(entry) = self.entries.get_mut(&netns) else {
            return;
        };
        let Some(withdrawn) = entry.declarations.remove(&provider) else {
            return;
        };
        info!(tenant = %withdrawn.tenant, namespace = withdrawn.name, provider = provider.label(),
            "tenant withdrawn");
        let left = entry.declaration().map(|declaration| declaration.tenant);
        // A namespace that left the directory is to be let go, whoever else declared it by then.
        if left.is_none() || provider == Provider::NetnsDir {
            self.take_down(netns).await;
            self.entries.remove(&netns);
            self.dirty.remove(&netns);
        } else if provider == Provider::Register {
            // Whoever started the stand-in ended the service with it.
            self.take_down(netns).await;
            if let Some(entry) = self.entries.get_mut(&netns) {
                entry.life.suspended();
            }
        } else if left != Some(withdrawn.tenant) {
            self.take_down(netns).await;
            self.bring_up(netns).await;
        }
    }

    fn plan(&self, declaration: &Declaration) -> Plan {
        let binds = declaration
            .settings
            .iter()
            .flat_map(|settings| &settings.binds);
        Plan {
            kind: declaration.tenant.kind,
            interfaces: declaration.interfaces.clone(),
            engine: self.engine,
            port: self.port,
            // What the metadata port gets is steered anyway, and haproxy may still be bound there.
            binds: binds
                .filter(|bind| bind.port != metadata_proxy_common::METADATA_PORT)
                .map(|bind| (bind.socket_address(), bind.interface.clone()))
                .collect(),
            own_cookie: self.own_cookie,
        }
    }

    /// Serves a tenant that is declared and not served; updates one that is.
    async fn bring_up(&mut self, netns: NetnsId) {
        let Some(entry) = self.entries.get(&netns) else {
            return;
        };
        let Some(declaration) = entry.declaration().cloned() else {
            return;
        };
        if self.is_quiet || *entry.life.phase() == Phase::Suspended {
            return;
        }
        let settings = (self.settings_of)(&self.settings, &declaration);
        if let Some(served) = &entry.served {
            served.service.settings.store(settings);
            self.dirty.insert(netns);
            return;
        }
        let counters = Arc::clone(&entry.counters);
        let opened = self.open(&declaration).await;
        let outcome = match opened {
            Ok(opened) => self.start(&declaration, settings, counters, opened).await,
            Err(reason) => Err(reason),
        };
        let Some(entry) = self.entries.get_mut(&netns) else {
            return;
        };
        match outcome {
            Ok(served) => {
                entry.served = Some(served);
                if entry.life.served() {
                    info!(tenant = %declaration.tenant, namespace = declaration.name,
                        provider = declaration.provider.label(), "tenant served");
                }
            }
            Err(reason) => {
                // A namespace that was just made is a plain file for a moment.
                let is_news = entry.life.failed(reason.clone(), Instant::now());
                if is_news && entry.life.failures() > 1 {
                    warn!(tenant = %declaration.tenant, namespace = declaration.name, reason,
                        "tenant cannot be served; it is tried again");
                }
            }
        }
    }

    /// Opens everything in the namespace.
    async fn open(&self, declaration: &Declaration) -> Result<Opened, String> {
        let netns = declaration.source.open().map_err(|e| e.to_string())?;
        if netns.id() != declaration.netns {
            return Err("the namespace was replaced by another one of that name".to_owned());
        }
        let kernel = Arc::clone(&self.kernel);
        let plan = self.plan(declaration);
        self.netns
            .run(netns, move || place::open(&*kernel, &plan))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    }

    /// Declares the tenant to the kernel, then hands its listeners to the workers.
    async fn start(
        &self,
        declaration: &Declaration,
        settings: Arc<Settings>,
        counters: Arc<Counters>,
        opened: Opened,
    ) -> Result<Served, String> {
        let Opened {
            listeners,
            events,
            place,
        } = opened;
        let handle = match listeners[0].as_fd().try_clone_to_owned() {
            Ok(handle) => handle,
            Err(error) => return Err(format!("cannot keep a handle to the namespace: {error}")),
        };
        // What somebody else wrote into the map is theirs to write and to remove.
        if declaration.provider != Provider::Map
            && let Err(error) = self.kernel.declare(place.cookie, declaration.tenant)
        {
            self.clear(&handle, place).await;
            return Err(error.to_string());
        }
        let service = Arc::new(Service::new(
            declaration.tenant,
            place.cookie,
            declaration.name.clone(),
            settings,
            counters,
        ));
        service.set_may_forward(place.may_forward);
        for listener in listeners {
            self.workers.listen(Arc::clone(&service), listener);
        }
        let sender = self.sender.clone();
        let netns = declaration.netns;
        let watcher = tokio::spawn(async move {
            // Should the registry be too busy to hear, it is already looking at this namespace or
            // the audit will.
            let changed = move || drop(sender.try_send(Command::Changed(netns)));
            if let Err(error) = events.watch(changed).await {
                error!(%error, "cannot watch a tenant namespace; changes wait for the audit");
            }
        });
        for (device, reason) in &place.refused {
            warn!(tenant = %declaration.tenant, device = device.name, reason, "device not attached");
        }
        let is_foreign = declaration.provider == Provider::Map;
        Ok(Served {
            service,
            place,
            handle,
            watcher,
            is_foreign,
        })
    }

    /// Ends the service of a tenant, the reverse of bringing it up.
    async fn take_down(&mut self, netns: NetnsId) {
        let Some(served) = self
            .entries
            .get_mut(&netns)
            .and_then(|entry| entry.served.take())
        else {
            return;
        };
        if !served.is_foreign
            && let Err(error) = self.kernel.withdraw(served.place.cookie)
        {
            error!(%error, tenant = %served.service.tenant, "the tenant's declaration stays");
        }
        served.watcher.abort();
        self.clear(&served.handle, served.place).await;
        // Only now, when nothing is steered to it any more, the listener closes.
        served.service.gone.cancel();
    }

    async fn clear(&self, handle: &OwnedFd, mut place: Place) {
        let kernel = Arc::clone(&self.kernel);
        let cookie = place.cookie;
        let cleared = match Netns::of_socket(handle) {
            Ok(netns) => {
                self.netns
                    .run(netns, move || place::clear(&*kernel, &mut place))
                    .await
            }
            Err(error) => Err(NetnsError::Enter(error)),
        };
        if let Err(error) = cleared {
            // Pinned links are what would keep steering; they need no namespace to be removed.
            self.kernel.forget(cookie);
            warn!(%error, "cannot clean a tenant namespace");
        }
    }

    async fn converge_dirty(&mut self) {
        for netns in std::mem::take(&mut self.dirty) {
            self.converge(netns).await;
        }
    }

    /// Looks at one namespace and puts right what is not as it should be.
    async fn converge(&mut self, netns: NetnsId) {
        if self.is_quiet {
            return;
        }
        let Some(entry) = self.entries.get_mut(&netns) else {
            return;
        };
        let Some(declaration) = entry.declaration().cloned() else {
            return;
        };
        let Some(mut served) = entry.served.take() else {
            return;
        };
        let plan = self.plan(&declaration);
        let kernel = Arc::clone(&self.kernel);
        let place = std::mem::replace(&mut served.place, Place::empty());
        let outcome = match Netns::of_socket(&served.handle) {
            Ok(namespace) => {
                self.netns
                    .run(namespace, move || {
                        let mut place = place;
                        let outcome = place::converge(&*kernel, &plan, &mut place);
                        (place, outcome)
                    })
                    .await
            }
            Err(error) => Ok((place, Err(PlaceError::unreachable(error)))),
        };
        let Some(entry) = self.entries.get_mut(&netns) else {
            return;
        };
        match outcome {
            Ok((place, outcome)) => {
                served.place = place;
                served.service.set_may_forward(served.place.may_forward);
                match outcome {
                    Ok(converged) => {
                        if converged.mended > 0 {
                            let mended = converged.mended;
                            info!(tenant = %declaration.tenant, mended, "namespace put right");
                        }
                        for listener in converged.listeners {
                            self.workers.listen(Arc::clone(&served.service), listener);
                        }
                    }
                    Err(error) => {
                        warn!(%error, tenant = %declaration.tenant, "cannot keep a tenant right");
                    }
                }
                entry.served = Some(served);
            }
            Err(error) => {
                error!(%error, tenant = %declaration.tenant, "tenant lost; it is brought up anew");
                self.kernel.forget(served.service.cookie);
                served.watcher.abort();
                served.service.gone.cancel();
                entry.life.failed(error.to_string(), Instant::now());
            }
        }
    }

    fn next_retry(&self) -> Option<Instant> {
        self.entries
            .values()
            .filter_map(|entry| entry.life.retry_at())
            .min()
    }

    async fn retry(&mut self) {
        let now = Instant::now();
        let due: Vec<NetnsId> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.life.retry_at().is_some_and(|at| at <= now))
            .map(|(netns, _)| *netns)
            .collect();
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
            .filter_map(|(netns, entry)| status(*netns, entry, self.port))
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

fn status(netns: NetnsId, entry: &Entry, port: u16) -> Option<TenantStatus> {
    use std::sync::atomic::Ordering::Relaxed;
    let declaration = entry.declaration()?;
    let counters = &entry.counters;
    let (state, reason) = match entry.life.phase() {
        Phase::Pending => (TenantState::Pending, None),
        Phase::Serving => (TenantState::Serving, None),
        Phase::Failing { reason, .. } => (TenantState::Failing, Some(reason.clone())),
        Phase::Suspended => {
            let reason = "its stand-in ended; it is served again when the next one starts";
            (TenantState::Pending, Some(reason.to_owned()))
        }
    };
    let since = entry
        .life
        .since()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap_or_default();
    Some(TenantStatus {
        kind: declaration.tenant.kind,
        id: declaration.tenant.id,
        namespace: declaration.name.clone(),
        netns_inode: netns.inode(),
        netns_cookie: entry
            .served
            .as_ref()
            .map_or(0, |served| served.place.cookie.0),
        provider: declaration.provider.label().to_owned(),
        state,
        reason,
        attempts: entry.life.failures().into(),
        since_unix: since.as_secs(),
        listener: entry.served.as_ref().map(|_| format!("[::]:{port}")),
        interfaces: entry.served.as_ref().map(interfaces).unwrap_or_default(),
        connections: Counts {
            open: counters.open.load(Relaxed),
            total: counters.connections.load(Relaxed),
        },
        requests: Counts {
            open: 0,
            total: counters.requests.load(Relaxed),
        },
    })
}

fn interfaces(served: &Served) -> Vec<InterfaceStatus> {
    let attached = served
        .place
        .attachments
        .values()
        .map(|attachment| InterfaceStatus {
            name: attachment.device.name.clone(),
            index: attachment.device.index,
            state: InterfaceState::Attached,
            reason: None,
        });
    let refused = served
        .place
        .refused
        .iter()
        .map(|(device, reason)| InterfaceStatus {
            name: device.name.clone(),
            index: device.index,
            state: InterfaceState::Failing,
            reason: Some(reason.clone()),
        });
    attached.chain(refused).collect()
}
