//! Neutron's metadata rate limiting: two sliding windows per guest address and tenant.
//!
//! A guest is refused while its rate in either window is *above* that window's limit; refused
//! requests count too. Both as haproxy does it with the configuration Neutron generates, so that a
//! node behaves the same after the change.
//!
//! Why no crate: `governor` is GCRA and does not count what it refused; sliding-window crates count
//! admitted requests only; `pingora-limits` has the right estimate, but keeps it in a count-min
//! sketch, where one guest's count contains strangers'. None forgets an idle address or survives a
//! change of the parameters. What counts is kept here, what is allowed comes with every call, so a
//! configuration reload loses no window.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use metadata_proxy_common::TenantKind;
use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use slab::Slab;
use uuid::Uuid;

use super::{
    list::{Linked, Links, List},
    window::{self, Window},
};
use crate::identity::{GuestAddress, Tenant};

/// One window's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowLimit {
    /// How far back it looks (`base_window_duration`, `burst_window_duration`).
    pub period: Duration,
    /// Requests within one period that are still served (`base_query_rate_limit`,
    /// `burst_query_rate_limit`).
    pub requests: u32,
}

impl WindowLimit {
    fn period_ms(self) -> u64 {
        milliseconds(self.period).max(1)
    }
}

/// Which guests are limited (`ip_versions`).
///
/// haproxy told to limit IPv6 limits IPv4 too (measured: a table of type `ipv6` takes IPv4 addresses
/// as mapped ones); here each family is limited only if it is named, as Neutron documents it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    /// Those with an IPv4 address.
    pub v4: bool,
    /// Those with an IPv6 address.
    pub v6: bool,
}

impl Families {
    const fn contain(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(_) => self.v4,
            IpAddr::V6(_) => self.v6,
        }
    }
}

/// A tenant's rate limits: Neutron's `[metadata_rate_limiting]` with `rate_limit_enabled`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimits {
    /// The long window.
    pub base: WindowLimit,
    /// The short window.
    pub burst: WindowLimit,
    /// Which guests are limited.
    pub families: Families,
}

/// Whether a request may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Admitted,
    /// Answer 429.
    Denied {
        /// Value of `Retry-After`: seconds until one request would be admitted, if none comes
        /// before.
        retry_after: u64,
    },
}

/// The windows of one guest, as one process tells them to the next.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WindowRecord {
    kind: u8,
    id: Uuid,
    address: IpAddr,
    /// When this was so, milliseconds of the machine's monotonic clock.
    at: u64,
    /// When it may be forgotten, milliseconds from then.
    expires_in: u64,
    base: window::Record,
    burst: window::Record,
}

/// What the limiter holds, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateSnapshot {
    /// Guest addresses with a window.
    pub tracked: usize,
    /// Requests refused so far.
    pub denied: u64,
    /// Addresses forgotten before their time because there were too many.
    pub evicted: u64,
}

/// Counts requests per guest address and tenant, and says which are too many.
pub struct RateLimiter {
    epoch: Instant,
    max_tracked: usize,
    max_per_tenant: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Slab<Entry>,
    index: HashMap<(Tenant, IpAddr), usize>,
    /// The entries of each tenant, the idlest first.
    tenants: HashMap<Tenant, List>,
    /// Where the search for expired entries goes on.
    sweep_at: usize,
    denied: u64,
    evicted: u64,
}

struct Entry {
    links: Links,
    tenant: Tenant,
    address: IpAddr,
    /// When it may be forgotten, milliseconds.
    expires: u64,
    base: Window,
    burst: Window,
}

impl Linked for Entry {
    fn links(&mut self) -> &mut Links {
        &mut self.links
    }
}

/// How far back a window of a predecessor may have begun.
const EARLIER: Duration = Duration::from_hours(24 * 30);

/// Slots looked at for expired entries with every request: enough to free more than can come.
const SWEEP: usize = 2;

impl RateLimiter {
    /// A limiter that remembers at most about `max_tracked` addresses, and `max_per_tenant` of one
    /// tenant (haproxy's tables hold 10,240 each).
    ///
    /// Where there are more, a tenant pays with its own idlest address: no tenant can make another
    /// one's windows be forgotten.
    #[must_use]
    pub fn new(max_tracked: usize, max_per_tenant: usize) -> Self {
        let now = Instant::now();
        Self {
            // Windows of a predecessor began before this process.
            epoch: now.checked_sub(EARLIER).unwrap_or(now),
            max_tracked: max_tracked.max(1),
            max_per_tenant: max_per_tenant.max(1),
            state: Mutex::default(),
        }
    }

    /// Counts a request that came at `now` and says whether it may go on.
    pub fn check(
        &self,
        tenant: Tenant,
        guest: GuestAddress,
        limits: &RateLimits,
        now: Instant,
    ) -> Verdict {
        if !limits.families.contain(guest.ip()) {
            return Verdict::Admitted;
        }
        let now = self.since_epoch(now);
        let (base, burst) = (limits.base.period_ms(), limits.burst.period_ms());
        // As Neutron sets `expire` of both tables.
        let memory = base.max(burst);

        let mut state = self.state();
        state.sweep(now);
        let at = self.entry(&mut state, (tenant, guest.ip()), now);
        let entry = &mut state.entries[at];
        entry.expires = now + memory;
        entry.base.count(now, base);
        entry.burst.count(now, burst);
        let (base_limit, burst_limit) = (
            u64::from(limits.base.requests),
            u64::from(limits.burst.requests),
        );
        if entry.base.estimate(now, base) <= base_limit
            && entry.burst.estimate(now, burst) <= burst_limit
        {
            return Verdict::Admitted;
        }
        let (base_window, burst_window) = (entry.base, entry.burst);
        state.denied += 1;
        drop(state);
        let clear = |window: Window, period, limit| {
            window
                .clear_after(now, period, limit)
                .unwrap_or(memory)
                .min(memory)
        };
        let wait =
            clear(base_window, base, base_limit).max(clear(burst_window, burst, burst_limit));
        Verdict::Denied {
            retry_after: wait.div_ceil(1_000).max(1),
        }
    }

    /// The windows that are still of use, as they are at `now`.
    #[must_use]
    pub fn windows(&self, now: Instant) -> Vec<WindowRecord> {
        let at = monotonic_ms();
        let now = self.since_epoch(now);
        let state = self.state();
        let entries = state.entries.iter().map(|(_, entry)| entry);
        entries
            .filter(|entry| entry.expires > now)
            .map(|entry| WindowRecord {
                kind: entry.tenant.kind as u8,
                id: entry.tenant.id,
                address: entry.address,
                at,
                expires_in: entry.expires - now,
                base: entry.base.record(now),
                burst: entry.burst.record(now),
            })
            .collect()
    }

    /// Goes on where a predecessor was. What makes no sense is left out; who has been counted here
    /// already keeps that count.
    pub fn resume(&self, windows: &[WindowRecord], now: Instant) {
        let (clock, now) = (monotonic_ms(), self.since_epoch(now));
        for record in windows {
            let Some(kind) = TenantKind::from_byte(record.kind) else {
                continue;
            };
            let tenant = Tenant {
                kind,
                id: record.id,
            };
            let at = now.saturating_sub(clock.saturating_sub(record.at));
            let expires = at.saturating_add(record.expires_in);
            let mut state = self.state();
            if expires <= now || state.index.contains_key(&(tenant, record.address)) {
                continue;
            }
            let slot = self.entry(&mut state, (tenant, record.address), now);
            let entry = &mut state.entries[slot];
            entry.expires = expires;
            entry.base = Window::resumed(&record.base, at);
            entry.burst = Window::resumed(&record.burst, at);
        }
    }

    fn since_epoch(&self, now: Instant) -> u64 {
        milliseconds(now.saturating_duration_since(self.epoch))
    }

    /// What it holds.
    #[must_use]
    pub fn snapshot(&self) -> RateSnapshot {
        let state = self.state();
        RateSnapshot {
            tracked: state.entries.len(),
            denied: state.denied,
            evicted: state.evicted,
        }
    }

    /// Finds or makes the entry of an address, and marks it as the tenant's busiest.
    fn entry(&self, state: &mut State, key: (Tenant, IpAddr), now: u64) -> usize {
        if let Some(&at) = state.index.get(&key) {
            if state.entries[at].expires > now {
                let list = state
                    .tenants
                    .get_mut(&key.0)
                    .expect("an entry is in its tenant's list");
                list.move_to_back(&mut state.entries, at);
                return at;
            }
            state.forget(at);
        }
        let of_tenant = state.tenants.get(&key.0).map_or(0, List::len);
        if (of_tenant >= self.max_per_tenant || state.entries.len() >= self.max_tracked)
            && let Some(idlest) = state.tenants.get(&key.0).and_then(List::front)
        {
            state.forget(idlest);
            state.evicted += 1;
        }
        let window = Window::starting(now);
        let at = state.entries.insert(Entry {
            links: Links::unlinked(),
            tenant: key.0,
            address: key.1,
            expires: now,
            base: window,
            burst: window,
        });
        state
            .tenants
            .entry(key.0)
            .or_insert(List::new())
            .push_back(&mut state.entries, at);
        state.index.insert(key, at);
        at
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Forgets what has expired among the next few slots.
    fn sweep(&mut self, now: u64) {
        for _ in 0..SWEEP {
            let at = self.sweep_at;
            self.sweep_at = if at + 1 < self.entries.capacity() {
                at + 1
            } else {
                0
            };
            if self
                .entries
                .get(at)
                .is_some_and(|entry| entry.expires <= now)
            {
                self.forget(at);
            }
        }
    }

    fn forget(&mut self, at: usize) {
        let Entry {
            tenant, address, ..
        } = self.entries[at];
        self.index.remove(&(tenant, address));
        if let Some(list) = self.tenants.get_mut(&tenant) {
            list.remove(&mut self.entries, at);
            if list.is_empty() {
                self.tenants.remove(&tenant);
            }
        }
        self.entries.remove(at);
        if self.entries.is_empty() {
            // Gives back what a flood made it grow to.
            *self = Self {
                denied: self.denied,
                evicted: self.evicted,
                ..Self::default()
            };
        }
    }
}

/// The machine's monotonic clock, which all processes see alike.
fn monotonic_ms() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| milliseconds(now.into()))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis())
        .unwrap_or(u64::MAX / 4)
        .min(u64::MAX / 4)
}

#[cfg(test)]
mod tests;
