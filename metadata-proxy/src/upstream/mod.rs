//! Who answers: a small closed set of kinds behind one function, [`Upstream::ask`].
//!
//! A request that reaches this module was rebuilt and carries a proved identity. Here it waits its
//! turn, is sent as its upstream needs it, and is attempted again where that can neither be
//! noticed nor harm. Nothing here looks at headers or bodies beyond their framing.

mod agent;
mod answer;
mod backoff;
mod counters;
pub mod embedded;
mod error;
mod http;
mod pool;
mod remote;
mod wire;

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;

pub use self::{
    agent::{Agent, AgentConfig},
    answer::{Answer, AnswerBody},
    counters::{RetryReason, UpstreamSnapshot},
    error::UpstreamError,
    http::{Endpoint, Http, HttpConfig},
};
use self::{counters::Counters, remote::Remote};
use crate::{
    admission::{BoundPolicy, QueueLimits, QueueSnapshot},
    rewrite::Outgoing,
};

/// How long an upstream is given; a tenant may have its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From asking until the request is sent: its time in the queue, and the time in which an
    /// upstream that is not there may come back (30 s in Neutron's haproxies).
    pub connect: Duration,
    /// From sending until the answer's head is there, then between any two reads of its body (32 s
    /// in Neutron's haproxies).
    pub server: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(30),
            server: Duration::from_secs(32),
        }
    }
}

/// Where a request's time went, for its access event. Filled in whatever the outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Waiting for its turn.
    pub queued: Duration,
    /// With the upstream: connecting, retries, until the head or the whole of a short answer.
    pub upstream: Duration,
    /// Attempts beyond the first.
    pub retries: u32,
}

/// Who answers.
pub enum Upstream {
    /// Neutron's metadata agent behind a unix socket.
    Agent(Agent),
    /// An HTTP server behind a TCP endpoint or a unix socket.
    Http(Http),
    /// This process, from a file.
    Embedded(Arc<embedded::Embedded>),
}

impl Upstream {
    /// Asks, and waits for the head of the answer at least. Dropped, it gives up at once.
    ///
    /// A guest may leave while its request waits: when `leaving` ends, a request that is not sent
    /// yet gives up its place. It is polled only by one that has to wait.
    ///
    /// # Errors
    /// [`UpstreamError`] if there is no answer to give.
    pub async fn ask(
        &self,
        request: &Outgoing,
        timeouts: Timeouts,
        spent: &mut Spent,
        leaving: impl Future<Output = ()>,
    ) -> Result<Answer, UpstreamError> {
        let leaving = pin!(leaving);
        let started = Instant::now();
        let outcome = match self {
            Self::Agent(agent) => agent.ask(request, timeouts, started, spent, leaving).await,
            Self::Http(http) => http.ask(request, timeouts, started, spent, leaving).await,
            Self::Embedded(embedded) => Ok(embedded.answer(request)),
        };
        if let Some(remote) = self.remote() {
            remote.count(&outcome);
        }
        spent.upstream = started.elapsed().saturating_sub(spent.queued);
        outcome
    }

    /// What it has if it is outside of this process.
    const fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Agent(agent) => Some(&agent.remote),
            Self::Http(http) => Some(&http.remote),
            Self::Embedded(_) => None,
        }
    }

    /// Which upstream: a socket path or an address, for logs and status.
    #[must_use]
    pub fn name(&self) -> &str {
        self.remote().map_or("embedded", Remote::name)
    }

    /// The word for its kind in configuration, logs and metrics.
    #[must_use]
    pub const fn kind_name(&self) -> &'static str {
        match self {
            Self::Agent(_) => "agent",
            Self::Http(_) => "http",
            Self::Embedded(_) => "embedded",
        }
    }

    /// What it did so far.
    #[must_use]
    pub fn snapshot(&self) -> UpstreamSnapshot {
        let nothing = || Counters::default().snapshot(QueueSnapshot::default());
        self.remote().map_or_else(nothing, Remote::snapshot)
    }

    /// Puts other bounds of the queue in force; who waits goes on waiting.
    pub fn reconfigure(&self, bound: BoundPolicy, waiting: QueueLimits) {
        if let Some(remote) = self.remote() {
            remote.reconfigure(bound, waiting);
        }
    }
}

#[cfg(test)]
mod fixture;
