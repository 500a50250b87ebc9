//! What workers see of a tenant: enough to serve its guests, nothing that changes the node.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::Farewells;
use crate::{
    admission::RateLimits,
    config::TimeoutsConfig,
    identity::Tenant,
    kernel::NetnsCookie,
    listener::Acceptor,
    upstream::{self, Upstream},
};

/// How a tenant is served; swapped whole when the configuration changes.
pub struct Settings {
    /// Who answers.
    pub upstream: Arc<Upstream>,
    /// How long each step may take.
    pub timeouts: TimeoutsConfig,
    /// How often a guest may ask, if that is limited.
    pub rate_limits: Option<RateLimits>,
    /// Longest request head, bytes.
    pub head_bytes: usize,
    /// Longest request body, bytes.
    pub body_bytes: usize,
    /// Most connections of the tenant's guests, where the tenant has a cap of its own.
    pub max_connections: Option<u32>,
    /// Whether requests are logged.
    pub log_access: bool,
}

impl Settings {
    /// How long the upstream may take.
    #[must_use]
    pub const fn upstream_timeouts(&self) -> upstream::Timeouts {
        upstream::Timeouts {
            connect: self.timeouts.connect,
            server: self.timeouts.server,
        }
    }
}

/// What happened for one tenant since it was declared.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted.
    pub connections: AtomicU64,
    /// Connections open now.
    pub open: AtomicU64,
    /// Connections refused before a byte was read.
    pub refused: AtomicU64,
    /// Requests answered, by us or by the upstream.
    pub requests: AtomicU64,
}

/// A tenant that is served.
pub struct Service {
    /// The tenant.
    pub tenant: Tenant,
    /// Cookie of its namespace.
    pub cookie: NetnsCookie,
    /// What people call its namespace.
    pub namespace: String,
    /// How it is served.
    pub settings: ArcSwap<Settings>,
    /// What happened.
    pub counters: Arc<Counters>,
    /// What its closed connections leave behind.
    pub farewells: Farewells,
    /// Cancelled when the tenant is gone: its connections end at once.
    pub gone: CancellationToken,
    may_forward: AtomicBool,
    has_lost_listener: AtomicBool,
    calls: Arc<Notify>,
    over: CancellationToken,
    /// What is accepted from; those who accept own it.
    listeners: Mutex<Vec<Weak<Acceptor>>>,
}

impl Service {
    /// Makes the service of a tenant whose namespace is set up.
    #[must_use]
    pub fn new(
        tenant: Tenant,
        cookie: NetnsCookie,
        namespace: String,
        settings: Arc<Settings>,
        counters: Arc<Counters>,
    ) -> Self {
        Self {
            tenant,
            cookie,
            namespace,
            settings: ArcSwap::new(settings),
            counters,
            farewells: Farewells::default(),
            gone: CancellationToken::new(),
            may_forward: AtomicBool::new(false),
            has_lost_listener: AtomicBool::new(false),
            calls: Arc::default(),
            over: CancellationToken::new(),
            listeners: Mutex::default(),
        }
    }

    /// Cancelled when nobody holds the service any more: its listeners and connections are closed.
    #[must_use]
    pub fn over(&self) -> CancellationToken {
        self.over.clone()
    }

    /// Notes what is accepted from.
    pub fn add_listener(&self, listener: &Arc<Acceptor>) {
        let mut listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        listeners.push(Arc::downgrade(listener));
    }

    /// Second descriptors of all that is accepted from, to be handed over.
    ///
    /// # Errors
    /// There are no descriptors to spare.
    pub fn listeners(&self) -> io::Result<Vec<OwnedFd>> {
        let listeners = self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let open = listeners.iter().filter_map(Weak::upgrade);
        open.map(|listener| listener.as_fd().try_clone_to_owned())
            .collect()
    }

    /// Whether requests of its guests may be forwarded; false for a router without an addressed
    /// internal device.
    #[must_use]
    pub fn may_forward(&self) -> bool {
        self.may_forward.load(Ordering::Relaxed)
    }

    /// Calls for whoever keeps the tenant right: what of it is in the kernel is not as it should be.
    pub fn call(&self) {
        self.calls.notify_one();
    }

    /// Where such calls are heard, which does not hold the service.
    #[must_use]
    pub fn calls(&self) -> Arc<Notify> {
        Arc::clone(&self.calls)
    }

    /// Whether somebody has destroyed a listener of it.
    #[must_use]
    pub fn has_lost_listener(&self) -> bool {
        self.has_lost_listener.load(Ordering::Relaxed)
    }

    /// Notes that somebody has destroyed a listener of it.
    pub fn lose_listener(&self) {
        self.has_lost_listener.store(true, Ordering::Relaxed);
        self.call();
    }

    /// Notes whether requests may be forwarded.
    pub fn set_may_forward(&self, may: bool) {
        self.may_forward.store(may, Ordering::Relaxed);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.over.cancel();
    }
}
