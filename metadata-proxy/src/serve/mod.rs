//! A guest's connection and its requests, in five named steps: prove, admit, rebuild, ask, answer.
//!
//! A reader can check the security argument here: no step is skipped, each fails closed, and what
//! the guest sent reaches none of them but through `rewrite`.

mod connection;
mod guest_io;
mod in_flight;
mod leaving;
mod length_watch;
mod request;
#[cfg(test)]
mod tests;
mod workers;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

pub use self::connection::accept;
pub use self::workers::{WorkerThreads, Workers};
use crate::{
    access::Metrics,
    admission::{Limits, RateLimiter},
    kernel::Kernel,
    tenants::Probes,
};

/// The two ways in which serving ends.
#[derive(Clone, Default)]
pub struct Ends {
    /// Accept nothing more, finish what is in flight.
    pub stopping: CancellationToken,
    /// Drop what is in flight too.
    pub aborting: CancellationToken,
    /// Said before `stopping`: another process accepts from here on.
    pub leaving: CancellationToken,
}

/// What all connections of the node share.
pub struct Node {
    /// The kernel programs, asked for each connection's tenant.
    pub kernel: Arc<dyn Kernel>,
    /// Caps on connections and requests.
    pub limits: Arc<Limits>,
    /// Counts requests against their rate limits.
    pub rates: RateLimiter,
    /// What is counted and timed.
    pub metrics: Metrics,
    /// How serving ends.
    pub ends: Ends,
    /// Connections of our own by which service is proved.
    pub probes: Arc<Probes>,
    open: AtomicUsize,
    all_over: Notify,
}

impl Node {
    /// Makes the shared state of a node without connections.
    #[must_use]
    pub fn new(
        kernel: Arc<dyn Kernel>,
        limits: Arc<Limits>,
        rates: RateLimiter,
        metrics: Metrics,
        ends: Ends,
    ) -> Self {
        Self {
            kernel,
            limits,
            rates,
            metrics,
            ends,
            probes: Arc::default(),
            open: AtomicUsize::new(0),
            all_over: Notify::new(),
        }
    }

    /// Connections open now.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Waits until no connection is open and no listener accepts.
    pub async fn connections_over(&self) {
        loop {
            let notified = self.all_over.notified();
            if self.open.load(Ordering::Acquire) == 0 {
                return;
            }
            notified.await;
        }
    }
}

/// Counts something that must be over before the process may end.
struct Open(Arc<Node>);

impl Open {
    fn new(node: &Arc<Node>) -> Self {
        node.open.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(node))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if self.0.open.fetch_sub(1, Ordering::Release) == 1 {
            self.0.all_over.notify_waiters();
        }
    }
}
