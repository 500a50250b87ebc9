//! The fair queue in front of an upstream.
//!
//! At most as many requests as the [bound](super::bound) says are with the upstream; the others
//! wait in lines that take turns. Shared by all worker threads: a permit given back
//! on one wakes the next in turn on whichever thread it waits. While nobody waits, a permit costs a
//! lock and no allocation.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use slab::Slab;
use tokio::time;

use super::{
    bound::{Bound, BoundPolicy},
    lines::Lines,
    list::{Linked, Links, List},
};
use crate::identity::{GuestAddress, Tenant};

mod permit;

pub use permit::Permit;

/// How many may wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests of all tenants. When it is reached, a tenant with fewer waiting than another takes
    /// the place of that one's last.
    pub waiting: usize,
    /// Requests of one tenant.
    pub waiting_per_tenant: usize,
}

/// Why a request may not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// As many wait as may.
    #[error("as many requests wait as may")]
    Full,
    /// As many of this tenant's wait as may.
    #[error("as many requests of this tenant wait as may")]
    TenantFull,
    /// Its turn did not come in time.
    #[error("its turn did not come in time")]
    TimedOut,
}

/// What the queue holds, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueSnapshot {
    /// How many requests may be with the upstream.
    pub bound: u32,
    /// The most the bound may become.
    pub ceiling: u32,
    /// Requests with the upstream, or trying to connect to it.
    pub in_flight: u32,
    /// Requests that the upstream has accepted a connection for.
    pub connected: u32,
    /// Requests that wait.
    pub waiting: usize,
    /// Tenants with a request that waits.
    pub tenants_waiting: usize,
    /// Requests that had to wait and then got their turn, so far.
    pub waited: u64,
    /// How long those waited, all together.
    pub waited_for: Duration,
    /// Connects that the upstream refused because its backlog was full, so far.
    pub backlog_full: u64,
    /// Requests refused or displaced because too many waited, so far.
    pub refused: u64,
    /// Requests refused because too many of their tenant's waited, so far.
    pub refused_tenant: u64,
    /// Requests whose turn did not come in time, so far.
    pub timed_out: u64,
    /// Requests whose guest hung up while they waited, so far.
    pub abandoned: u64,
}

/// Bounds the requests with an upstream, and lets the others wait their turn.
pub struct Queue {
    state: Mutex<State>,
}

struct State {
    bound: Bound,
    limits: QueueLimits,
    in_flight: u32,
    lines: Lines<usize>,
    /// Those whose connect was refused: it is still their turn.
    bounced: List,
    waiters: Slab<Waiter>,
    counts: QueueSnapshot,
}

struct Waiter {
    links: Links,
    standing: Standing,
    waker: Waker,
    since: Instant,
}

impl Linked for Waiter {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

#[derive(Clone, Copy)]
enum Standing {
    Waiting { place: usize },
    Bounced,
    Granted,
    Displaced,
}

/// While a request waits, it probes the bound about this often: answers may be so slow that nothing
/// else would.
const PROBE_AFTER: Duration = Duration::from_millis(100);
/// With many waiting, each probes so much less often for every other: 200 probes a second in all.
const PROBE_SHARE: Duration = Duration::from_millis(5);

impl Queue {
    /// A queue that nobody is in.
    #[must_use]
    pub fn new(policy: BoundPolicy, limits: QueueLimits) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                bound: Bound::new(policy),
                limits,
                in_flight: 0,
                lines: Lines::new(),
                bounced: List::new(),
                waiters: Slab::new(),
                counts: QueueSnapshot::default(),
            }),
        })
    }

    /// Puts other parameters in force; who waits goes on waiting.
    pub fn reconfigure(&self, policy: BoundPolicy, limits: QueueLimits) {
        let mut state = self.state();
        state.bound.set_policy(policy);
        state.limits = limits;
        self.grant(state);
    }

    /// Takes a permit if nobody waits and the bound allows it.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        let mut state = self.state();
        let goes_on = state.lines.is_empty()
            && !state.bound.is_held()
            && state.in_flight < state.bound.limit();
        goes_on.then(|| {
            state.in_flight += 1;
            Permit::new(self)
        })
    }

    /// Waits until it is this guest's turn. A dropped future leaves the queue at once.
    ///
    /// # Errors
    /// [`QueueError`] if too many wait already, or the turn does not come before `deadline`.
    pub async fn acquire(
        self: &Arc<Self>,
        tenant: Tenant,
        guest: GuestAddress,
        deadline: time::Instant,
    ) -> Result<Permit, QueueError> {
        let mut turn = Turn {
            queue: self,
            tenant,
            guest,
            waiter: None,
            timed_out: false,
        };
        let mut probe_after = PROBE_AFTER;
        loop {
            let until = deadline.min(time::Instant::now() + probe_after);
            match time::timeout_at(until, &mut turn).await {
                Ok(outcome) => return outcome,
                Err(_) if until == deadline => {
                    turn.timed_out = true;
                    return Err(QueueError::TimedOut);
                }
                Err(_) => {
                    let mut state = self.state();
                    state.bound.probe(Instant::now());
                    let waiting = u32::try_from(state.lines.len()).unwrap_or(u32::MAX);
                    probe_after = PROBE_AFTER.max(PROBE_SHARE.saturating_mul(waiting));
                    self.grant(state);
                }
            }
        }
    }

    /// What the queue holds.
    #[must_use]
    pub fn snapshot(&self) -> QueueSnapshot {
        let state = self.state();
        QueueSnapshot {
            bound: state.bound.limit(),
            ceiling: state.bound.ceiling(),
            in_flight: state.in_flight,
            connected: state.bound.connected(),
            waiting: state.lines.len(),
            tenants_waiting: state.lines.tenants(),
            backlog_full: state.bound.refusals(),
            ..state.counts
        }
    }

    /// Gives free places to those whose turn it is, and wakes them without holding the lock.
    fn grant<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        while let Some(waker) = state.grant_one() {
            drop(state);
            waker.wake();
            state = self.state();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Gives one free place to the one whose turn it is.
    fn grant_one(&mut self) -> Option<Waker> {
        if self.in_flight >= self.bound.allowed() {
            return None;
        }
        let at = if let Some(at) = self.bounced.front() {
            self.bounced.remove(&mut self.waiters, at);
            at
        } else if self.bound.is_held() {
            return None;
        } else {
            let at = self.lines.pop()?;
            self.counts.waited += 1;
            self.counts.waited_for += self.waiters[at].since.elapsed();
            at
        };
        self.in_flight += 1;
        let waiter = &mut self.waiters[at];
        waiter.standing = Standing::Granted;
        Some(waiter.waker.clone())
    }

    /// Puts a request at the end of its guest's line; `Err` also when it displaced nobody.
    ///
    /// Returns who was displaced to be woken.
    fn enqueue(
        &mut self,
        tenant: Tenant,
        guest: GuestAddress,
        waker: &Waker,
    ) -> Result<(usize, Option<Waker>), QueueError> {
        let of_tenant = self.lines.of_tenant(tenant);
        if of_tenant >= self.limits.waiting_per_tenant {
            self.counts.refused_tenant += 1;
            return Err(QueueError::TenantFull);
        }
        let mut displaced = None;
        if self.lines.len() >= self.limits.waiting {
            self.counts.refused += 1;
            let gone = self.lines.displace(of_tenant + 1).ok_or(QueueError::Full)?;
            let waiter = &mut self.waiters[gone];
            waiter.standing = Standing::Displaced;
            displaced = Some(waiter.waker.clone());
        }
        let slot = self.waiters.vacant_entry();
        let at = slot.key();
        let place = self.lines.push(tenant, guest, at);
        slot.insert(Waiter {
            links: Links::unlinked(),
            standing: Standing::Waiting { place },
            waker: waker.clone(),
            since: Instant::now(),
        });
        Ok((at, displaced))
    }
}

/// One request on its way through the queue.
struct Turn<'a> {
    queue: &'a Arc<Queue>,
    tenant: Tenant,
    guest: GuestAddress,
    waiter: Option<usize>,
    timed_out: bool,
}

impl Turn<'_> {
    /// First poll: goes on at once, or gets in line.
    fn enter(&mut self, waker: &Waker) -> Poll<Result<Permit, QueueError>> {
        let queue = self.queue;
        if let Some(permit) = queue.try_acquire() {
            return Poll::Ready(Ok(permit));
        }
        let mut state = queue.state();
        match state.enqueue(self.tenant, self.guest, waker) {
            Err(error) => Poll::Ready(Err(error)),
            Ok((at, displaced)) => {
                self.waiter = Some(at);
                // A place may have become free since it was tried for.
                queue.grant(state);
                if let Some(displaced) = displaced {
                    displaced.wake();
                }
                Poll::Pending
            }
        }
    }
}

impl Future for Turn<'_> {
    type Output = Result<Permit, QueueError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(at) = self.waiter else {
            return self.enter(cx.waker());
        };
        let mut state = self.queue.state();
        let outcome = match state.waiters[at].standing {
            Standing::Waiting { .. } | Standing::Bounced => {
                let known = &mut state.waiters[at].waker;
                let replaced = (!known.will_wake(cx.waker()))
                    .then(|| std::mem::replace(known, cx.waker().clone()));
                drop(state);
                // Dropping a waker can run foreign code: not under the lock.
                drop(replaced);
                return Poll::Pending;
            }
            Standing::Granted => Ok(Permit::new(self.queue)),
            Standing::Displaced => Err(QueueError::Full),
        };
        let waiter = state.waiters.remove(at);
        drop(state);
        drop(waiter);
        self.waiter = None;
        Poll::Ready(outcome)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(at) = self.waiter else { return };
        let mut state = self.queue.state();
        let waiter = state.waiters.remove(at);
        if self.timed_out {
            state.counts.timed_out += 1;
        } else {
            state.counts.abandoned += 1;
        }
        match waiter.standing {
            Standing::Waiting { place } => {
                state.lines.remove(place);
                drop(state);
            }
            Standing::Granted => {
                state.in_flight -= 1;
                self.queue.grant(state);
            }
            Standing::Bounced | Standing::Displaced => drop(state),
        }
    }
}

#[cfg(test)]
mod tests;
