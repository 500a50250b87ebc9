//! Keeps a tenant right: looks into its namespace again, and tells what was put back.

use std::{os::fd::OwnedFd, sync::Arc, time::Instant};

use tracing::{error, info, warn};

use super::{Entry, Registry, Served};
use crate::{
    kernel::{Kernel, Repair},
    netns::{Netns, NetnsError, NetnsId},
    tenants::{
        Declaration, Fault, Plan, Provider, Repairs,
        place::{self, Converged, Place, PlaceError},
    },
};

impl Registry {
    pub(super) async fn converge_dirty(&mut self) {
        for netns in std::mem::take(&mut self.dirty) {
            self.converge(netns).await;
        }
    }

    /// Looks at one namespace and puts right what is not as it should be.
    pub(super) async fn converge(&mut self, netns: NetnsId) {
        if self.is_quiet {
            return;
        }
        let is_deaf = |entry: &Entry| {
            let served = entry.served.as_ref();
            served.is_some_and(|served| served.service.has_lost_listener())
        };
        if self.entries.get(&netns).is_some_and(is_deaf) {
            return self.listen_anew(netns).await;
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
        let plan = self.plan(&declaration, Some(&served));
        let place = std::mem::replace(&mut served.place, Place::empty());
        match self.look_into(&served.handle, plan, place).await {
            Ok((place, outcome)) => {
                served.place = place;
                self.settle(&mut served, &declaration, outcome);
                if let Some(entry) = self.entries.get_mut(&netns) {
                    entry.served = Some(served);
                }
            }
            Err(error) => {
                error!(%error, tenant = %declaration.tenant, "tenant lost; it is brought up anew");
                self.kernel.forget(served.service.cookie);
                served.watcher.abort();
                served.service.gone.cancel();
                if let Some(entry) = self.entries.get_mut(&netns) {
                    entry.life.failed(error.to_string(), Instant::now());
                }
                self.retrying.insert(netns);
            }
        }
    }

    /// Serves a tenant anew whose listener somebody has destroyed.
    async fn listen_anew(&mut self, netns: NetnsId) {
        self.repairs.count(Repair::Listener);
        let entry = self.entries.get(&netns);
        if let Some(declaration) = entry.and_then(Entry::declaration) {
            warn!(tenant = %declaration.tenant, what = Repair::Listener.label(),
                "somebody took away what is ours; it is put back");
        }
        self.take_down(netns).await;
        self.bring_up(netns).await;
    }

    /// Brings a namespace to what it should be, from within.
    async fn look_into(
        &self,
        handle: &OwnedFd,
        plan: Plan,
        mut place: Place,
    ) -> Result<(Place, Result<Converged, PlaceError>), NetnsError> {
        let namespace = match Netns::of_socket(handle) {
            Ok(namespace) => namespace,
            Err(error) => return Ok((place, Err(PlaceError::unreachable(error)))),
        };
        let kernel = Arc::clone(&self.kernel);
        let look = move || {
            let outcome = place::converge(&*kernel, &plan, &mut place);
            (place, outcome)
        };
        self.netns.run(namespace, look).await
    }

    /// Serves a tenant by what a look into its namespace came to.
    fn settle(
        &self,
        served: &mut Served,
        declaration: &Declaration,
        outcome: Result<Converged, PlaceError>,
    ) {
        let Served {
            service,
            place,
            fault,
            ..
        } = served;
        place.hear_later_devices(service);
        service.set_may_forward(place.may_forward);
        service.farewells.set_recycled(place.recycles(self.engine));
        let mut converged = match outcome {
            Ok(converged) => converged,
            Err(error) => {
                let found = Fault::Steering(error.to_string());
                if fault.as_ref() != Some(&found) {
                    warn!(%error, tenant = %declaration.tenant, "cannot keep a tenant right");
                }
                *fault = Some(found);
                return;
            }
        };
        match redeclare(&*self.kernel, declaration, place) {
            Ok(repairs) => {
                converged.repairs.extend(repairs);
                fault.take_if(|fault| matches!(fault, Fault::Steering(_)));
            }
            Err(found) => {
                if fault.as_ref() != Some(&found) {
                    error!(tenant = %declaration.tenant, fault = %found, "guests are refused");
                }
                *fault = Some(found);
            }
        }
        tell(&self.repairs, declaration, &converged);
        let listeners = converged.listeners;
        self.store.keep(service.tenant, service.cookie, &listeners);
        for listener in listeners {
            self.workers.listen(Arc::clone(service), listener);
        }
    }
}

/// Declares a tenant to the kernel again, if its entry is gone. What is not ours stays as it is.
fn redeclare(
    kernel: &dyn Kernel,
    declaration: &Declaration,
    place: &Place,
) -> Result<Option<Repair>, Fault> {
    if declaration.provider == Provider::Map {
        return Ok(None);
    }
    match kernel.tenant(place.cookie) {
        Ok(Some(tenant)) if tenant == declaration.tenant => Ok(None),
        // No guest is served meanwhile: no entry, or another one, proves nobody.
        _ => kernel
            .declare(place.cookie, declaration.tenant)
            .map(|()| Some(Repair::Entry))
            .map_err(|error| Fault::Steering(error.to_string())),
    }
}

/// Counts and logs, once, what was put back.
fn tell(counters: &Repairs, declaration: &Declaration, converged: &Converged) {
    let Converged { added, repairs, .. } = converged;
    for repair in repairs {
        counters.count(*repair);
    }
    if !repairs.is_empty() {
        let what: Vec<_> = repairs.iter().map(|repair| repair.label()).collect();
        warn!(tenant = %declaration.tenant, what = what.join(", "),
            "somebody took away what is ours; it is put back");
    } else if *added > 0 {
        info!(tenant = %declaration.tenant, added, "namespace changed");
    }
}
