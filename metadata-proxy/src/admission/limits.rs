//! Caps on connections and on requests in flight, so that no guest and no tenant can use up what
//! the others need.
//!
//! Counted with tokens that give back when dropped. Memory is bounded by the cap on connections:
//! an address is known only while it has one.
//!
//! Every connection passes here four times, so the counts are kept in shards, each tenant's in one: the
//! worker that serves a tenant has its shard's memory near, and seldom meets another worker there. Only
//! how many connections there are on the node is counted in one place.

use std::{
    array,
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use foldhash::fast::RandomState;
use slab::Slab;

use crate::identity::{GuestAddress, Tenant};

/// How many there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caps {
    /// Connections of all guests.
    pub connections: u32,
    /// Connections of one tenant's guests.
    pub connections_per_tenant: u32,
    /// Connections of one guest.
    pub connections_per_guest: u32,
    /// Requests of one guest that were admitted and not yet answered.
    pub requests_per_guest: u32,
}

/// Which cap was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refusal {
    /// [`Caps::connections`].
    #[error("as many connections are open as this node may have")]
    Connections,
    /// [`Caps::connections_per_tenant`].
    #[error("the tenant has as many connections open as it may have")]
    TenantConnections,
    /// [`Caps::connections_per_guest`].
    #[error("the guest has as many connections open as it may have")]
    GuestConnections,
    /// [`Caps::requests_per_guest`].
    #[error("the guest has as many requests in flight as it may have")]
    GuestRequests,
}

impl Refusal {
    /// Every refusal.
    pub const ALL: [Self; 4] = [
        Self::Connections,
        Self::TenantConnections,
        Self::GuestConnections,
        Self::GuestRequests,
    ];

    /// The name used in metrics and logs.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::TenantConnections => "tenant_connections",
            Self::GuestConnections => "guest_connections",
            Self::GuestRequests => "guest_requests",
        }
    }
}

const _: () = {
    let mut index = 0;
    while index < Refusal::ALL.len() {
        assert!(
            Refusal::ALL[index] as usize == index,
            "refusals must be listed in order"
        );
        index += 1;
    }
};

/// What is open, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsSnapshot {
    /// Connections open.
    pub connections: u32,
    /// Requests admitted and not yet answered.
    pub requests: u32,
    /// Guests with a connection.
    pub guests: usize,
    /// Tenants whose guests have a connection.
    pub tenants: usize,
    /// Refusals so far, in the order of [`Refusal::ALL`].
    pub refused: [u64; 4],
}

/// More than workers, so that two of them seldom want the same at once.
const SHARDS: usize = 64;

/// Counts connections and requests against [`Caps`].
pub struct Limits {
    /// Connections of all shards.
    connections: AtomicU32,
    shards: [Shard; SHARDS],
}

/// Counts of some tenants, in cache lines of their own.
#[repr(align(128))]
struct Shard(Mutex<State>);

struct State {
    caps: Caps,
    requests: u32,
    tenants: HashMap<Tenant, u32, RandomState>,
    guests: HashMap<(Tenant, GuestAddress), usize, RandomState>,
    counts: Slab<Guest>,
    refused: [u64; 4],
}

struct Guest {
    key: (Tenant, GuestAddress),
    connections: u32,
    requests: u32,
}

impl Limits {
    /// Starts with nothing open.
    #[must_use]
    pub fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            connections: AtomicU32::new(0),
            shards: array::from_fn(|_| Shard::new(caps)),
        })
    }

    /// Puts other caps in force; what is open beyond them stays open.
    pub fn set_caps(&self, caps: Caps) {
        for shard in &self.shards {
            shard.state().caps = caps;
        }
    }

    /// Counts a connection until the token is dropped. `of_tenant` is the tenant's own cap, if it
    /// has one; it can only lower [`Caps::connections_per_tenant`].
    ///
    /// # Errors
    /// [`Refusal`] says which cap it would exceed.
    pub fn connect(
        self: &Arc<Self>,
        tenant: Tenant,
        guest: GuestAddress,
        of_tenant: Option<u32>,
    ) -> Result<ConnectionToken, Refusal> {
        let shard = shard_of(tenant);
        let mut state = self.shards[shard].state();
        let at = state.connect((tenant, guest), of_tenant, &self.connections)?;
        Ok(ConnectionToken {
            limits: Arc::clone(self),
            place: Place { shard, at },
        })
    }

    /// What is open.
    #[must_use]
    pub fn snapshot(&self) -> LimitsSnapshot {
        let mut sum = LimitsSnapshot {
            connections: self.connections.load(Ordering::Relaxed),
            ..LimitsSnapshot::default()
        };
        for shard in &self.shards {
            let state = shard.state();
            sum.requests += state.requests;
            sum.guests += state.guests.len();
            sum.tenants += state.tenants.len();
            for (sum, refused) in sum.refused.iter_mut().zip(state.refused) {
                *sum += refused;
            }
        }
        sum
    }

    fn state(&self, place: Place) -> MutexGuard<'_, State> {
        self.shards[place.shard].state()
    }
}

/// Ids of routers and networks are random.
fn shard_of(tenant: Tenant) -> usize {
    usize::from(tenant.id.as_bytes()[15]) % SHARDS
}

impl Shard {
    fn new(caps: Caps) -> Self {
        Self(Mutex::new(State {
            caps,
            requests: 0,
            tenants: HashMap::default(),
            guests: HashMap::default(),
            counts: Slab::new(),
            refused: [0; 4],
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn connect(
        &mut self,
        key: (Tenant, GuestAddress),
        own_cap: Option<u32>,
        of_node: &AtomicU32,
    ) -> Result<usize, Refusal> {
        let most_of_node = self.caps.connections;
        let most = self.caps.connections_per_tenant;
        let most = own_cap.map_or(most, |own| own.min(most));
        let of_tenant = self.tenants.get(&key.0).copied().unwrap_or(0);
        let known = self.guests.get(&key).copied();
        let of_guest = known.map_or(0, |at| self.counts[at].connections);
        if of_node.load(Ordering::Relaxed) >= most_of_node {
            return Err(self.refuse(Refusal::Connections));
        }
        if of_tenant >= most {
            return Err(self.refuse(Refusal::TenantConnections));
        }
        if of_guest >= self.caps.connections_per_guest {
            return Err(self.refuse(Refusal::GuestConnections));
        }
        // Last, so that only what is admitted is ever counted; another shard may have been faster.
        let one_more = |count: u32| (count < most_of_node).then_some(count + 1);
        if of_node
            .try_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .is_err()
        {
            return Err(self.refuse(Refusal::Connections));
        }
        let at = known.unwrap_or_else(|| {
            let at = self.counts.insert(Guest {
                key,
                connections: 0,
                requests: 0,
            });
            self.guests.insert(key, at);
            at
        });
        self.counts[at].connections += 1;
        self.tenants.insert(key.0, of_tenant + 1);
        Ok(at)
    }

    fn disconnect(&mut self, at: usize) {
        let guest = &mut self.counts[at];
        guest.connections -= 1;
        let tenant = guest.key.0;
        if let Some(of_tenant) = self.tenants.get_mut(&tenant) {
            *of_tenant -= 1;
            if *of_tenant == 0 {
                self.tenants.remove(&tenant);
            }
        }
        self.forget_if_gone(at);
    }

    fn request(&mut self, at: usize) -> Result<(), Refusal> {
        let guest = &mut self.counts[at];
        if guest.requests >= self.caps.requests_per_guest {
            return Err(self.refuse(Refusal::GuestRequests));
        }
        guest.requests += 1;
        self.requests += 1;
        Ok(())
    }

    fn finish(&mut self, at: usize) {
        self.counts[at].requests -= 1;
        self.requests -= 1;
        self.forget_if_gone(at);
    }

    /// A request's token may outlive its connection's, when the guest hangs up.
    fn forget_if_gone(&mut self, at: usize) {
        let guest = &self.counts[at];
        if guest.connections == 0 && guest.requests == 0 {
            let guest = self.counts.remove(at);
            self.guests.remove(&guest.key);
        }
    }

    fn refuse(&mut self, refusal: Refusal) -> Refusal {
        self.refused[refusal as usize] += 1;
        refusal
    }
}

/// Where a guest is counted.
#[derive(Clone, Copy)]
struct Place {
    shard: usize,
    at: usize,
}

/// One connection, counted until this is dropped.
pub struct ConnectionToken {
    limits: Arc<Limits>,
    place: Place,
}

impl ConnectionToken {
    /// Counts a request of this connection until the token is dropped.
    ///
    /// # Errors
    /// [`Refusal::GuestRequests`] if the guest has as many in flight as it may.
    pub fn request(&self) -> Result<RequestToken, Refusal> {
        self.limits.state(self.place).request(self.place.at)?;
        Ok(RequestToken {
            limits: Arc::clone(&self.limits),
            place: self.place,
        })
    }
}

impl Drop for ConnectionToken {
    fn drop(&mut self) {
        self.limits.state(self.place).disconnect(self.place.at);
        self.limits.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One request in flight, counted until this is dropped.
pub struct RequestToken {
    limits: Arc<Limits>,
    place: Place,
}

impl Drop for RequestToken {
    fn drop(&mut self) {
        self.limits.state(self.place).finish(self.place.at);
    }
}

#[cfg(test)]
mod tests;
