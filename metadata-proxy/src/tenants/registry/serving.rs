//! Brings a tenant up and takes it down: the registry's work in namespaces.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};
use tracing::{error, info, warn};

use super::{Command, Registry, Served};
use crate::{
    kernel::Kernel,
    netns::{Netns, NetnsError, NetnsId, NetnsThread},
    tenants::{
        Counters, Declaration, Phase, Plan, Provider, Service, Settings,
        place::{self, Opened, Place},
    },
};

/// How long the workers may take to close what a tenant had open.
const CLOSED_WITHIN: Duration = Duration::from_secs(1);

/// A service that calls again and again is looked at this often: its guests may make it call.
const CALLS_APART: Duration = Duration::from_secs(1);

impl Registry {
    pub(super) async fn withdraw(&mut self, netns: NetnsId, provider: Provider) {
        let Some(entry) = self.entries.get_mut(&netns) else {
            return;
        };
        let Some(withdrawn) = entry.declarations.remove(&provider) else {
            return;
        };
        info!(tenant = %withdrawn.tenant, namespace = withdrawn.name, provider = provider.label(),
            "tenant withdrawn");
        let left = entry.declaration().map(|declaration| declaration.tenant);
        if left.is_none() {
            self.let_go(netns).await;
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

    /// Ends a tenant and forgets it: only so is its namespace not kept alive by us.
    pub(super) async fn let_go(&mut self, netns: NetnsId) {
        self.take_down(netns).await;
        self.entries.remove(&netns);
        self.dirty.remove(&netns);
    }

    pub(super) fn plan(&self, declaration: &Declaration, served: Option<&Served>) -> Plan {
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
            recycles: served
                .is_some_and(|served| served.service.farewells.are_many().is_cancelled()),
            own_cookie: self.own_cookie,
        }
    }

    /// Serves a tenant that is declared and not served; updates one that is.
    pub(super) async fn bring_up(&mut self, netns: NetnsId) {
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
                self.retrying.insert(netns);
                let failures = entry.life.failures();
                if failures == 2 || (is_news && failures > 1) {
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
        let plan = self.plan(declaration, None);
        let kept = Arc::clone(&self.kept);
        self.netns
            .run(netns, move || place::open(&*kernel, &plan, &kept))
            .await
            .map_err(|e| e.to_string())?
            .map_err(|e| e.to_string())
    }

    /// Declares the tenant to the kernel, then hands its listeners to the workers.
    async fn start(
        &mut self,
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
        let handle = events.handle();
        // What somebody else wrote into the map is theirs to write and to remove; what they have
        // removed meanwhile is not to come back.
        if declaration.provider != Provider::Map
            && let Err(error) = self.kernel.declare(place.cookie, declaration.tenant)
        {
            inside(&self.netns, &self.kernel, &handle, place, place::clear).await;
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
        service.farewells.set_recycled(place.recycles(self.engine));
        self.store
            .keep(declaration.tenant, place.cookie, &listeners);
        for listener in listeners {
            self.workers.listen(Arc::clone(&service), listener);
        }
        let sender = self.sender.clone();
        let missed = Arc::clone(&self.missed);
        let netns = declaration.netns;
        let are_many = service.farewells.are_many().clone();
        let calls = service.calls();
        let watcher = tokio::spawn(async move {
            let changed = || {
                // A registry that has not room for one more command is about to obey others.
                if sender.try_send(Command::Changed(netns)).is_err() {
                    missed.store(true, Ordering::Relaxed);
                }
            };
            let many = async {
                are_many.cancelled().await;
                changed();
            };
            let called = async {
                loop {
                    calls.notified().await;
                    changed();
                    sleep(CALLS_APART).await;
                }
            };
            let watched = async {
                if let Err(error) = events.watch(changed).await {
                    error!(%error, "cannot watch a tenant namespace; changes wait for the audit");
                }
            };
            tokio::join!(watched, many, called);
        });
        for (device, reason) in &place.refused {
            warn!(tenant = %declaration.tenant, device = device.name, reason, "device not attached");
        }
        let now = Instant::now();
        self.audit.queue(now, declaration.netns);
        Ok(Served {
            service,
            place,
            handle,
            watcher,
            since: now,
            connected: None,
            proved: None,
            fault: None,
        })
    }

    /// Ends the service of a tenant, the reverse of bringing it up.
    pub(super) async fn take_down(&mut self, netns: NetnsId) {
        let Some(served) = self
            .entries
            .get_mut(&netns)
            .and_then(|entry| entry.served.take())
        else {
            return;
        };
        if let Err(error) = self.kernel.withdraw(served.service.cookie) {
            error!(%error, tenant = %served.service.tenant, "the tenant's declaration stays");
        }
        self.store
            .forget(served.service.tenant, served.service.cookie);
        served.watcher.abort();
        let Served {
            service,
            place,
            handle,
            ..
        } = served;
        let place = inside(&self.netns, &self.kernel, &handle, place, place::detach).await;
        // Only now, when nothing is steered to it any more, the listener closes. Its connections
        // end while the route is there: without it no farewell of a guest's would arrive, and the
        // kernel would keep the sockets, and with them the namespace, for minutes.
        let over = service.over();
        service.gone.cancel();
        drop(service);
        if timeout(CLOSED_WITHIN, over.cancelled()).await.is_err() {
            warn!("connections of a tenant that is gone take long to close");
        }
        if let Some(place) = place {
            inside(&self.netns, &self.kernel, &handle, place, place::clear).await;
        }
    }
}

/// Takes something out of a namespace; `None` if there is no way in.
pub(super) async fn inside(
    netns: &NetnsThread,
    kernel: &Arc<dyn Kernel>,
    handle: &OwnedFd,
    mut place: Place,
    work: fn(&dyn Kernel, &mut Place),
) -> Option<Place> {
    let cookie = place.cookie;
    let worked = match Netns::of_socket(handle) {
        Ok(namespace) => {
            let kernel = Arc::clone(kernel);
            let work = move || {
                work(&*kernel, &mut place);
                place
            };
            netns.run(namespace, work).await
        }
        Err(error) => Err(NetnsError::Enter(error)),
    };
    match worked {
        Ok(place) => Some(place),
        Err(error) => {
            // Pinned links are what would keep steering; they need no namespace to be removed.
            kernel.forget(cookie);
            warn!(%error, "cannot clean a tenant namespace");
            None
        }
    }
}
