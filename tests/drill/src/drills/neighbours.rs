//! Guests of other tenants, who ask as guests do while something else goes on.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use metadata_proxy_tests::{
    TenantFixture,
    crowd::{Tally, ask_once},
};

/// How often each of them asks.
const PACE: Duration = Duration::from_millis(4);

/// Added to twice the time of quiet, since here the attackers, who are elsewhere on a real node,
/// share two cores with the agent: some turns of the scheduler (3 ms each).
pub(crate) const SLACK: Duration = Duration::from_millis(15);

/// Lets a guest of each tenant ask for a while.
pub(crate) fn ask_for(tenants: &[TenantFixture], window: Duration) -> Result<Tally> {
    let until = Instant::now() + window;
    ask_while(tenants, || Instant::now() < until)
}

fn ask_while(tenants: &[TenantFixture], goes_on: impl Fn() -> bool + Sync) -> Result<Tally> {
    let goes_on = &goes_on;
    thread::scope(|scope| {
        let threads: Vec<_> = tenants
            .iter()
            .map(|tenant| {
                scope.spawn(move || {
                    tenant.guest().netns.enter()?;
                    let wanted = tenant.id.to_string();
                    let mut tally = Tally::default();
                    while goes_on() {
                        let next = Instant::now() + PACE;
                        tally.add(ask_once(None, &[&wanted]));
                        thread::sleep(next.saturating_duration_since(Instant::now()));
                    }
                    anyhow::Ok(tally)
                })
            })
            .collect();
        let mut all = Tally::default();
        for thread in threads {
            all.merge(thread.join().ok().context("a neighbour panicked")??);
        }
        Ok(all)
    })
}

/// The middle one.
pub(crate) fn median(mut all: Vec<Duration>) -> Duration {
    all.sort_unstable();
    all.get(all.len() / 2).copied().unwrap_or_default()
}

/// Does something on threads of its own while `during` runs, then says stop and waits.
pub(crate) fn while_attacked<T>(
    attack: impl Fn(&AtomicBool) -> Result<u64> + Sync,
    during: impl FnOnce() -> Result<T>,
) -> Result<(T, u64)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let attacking = scope.spawn(|| attack(&stop));
        let outcome = during();
        stop.store(true, Ordering::SeqCst);
        let done = attacking.join().ok().context("an attacker panicked")??;
        Ok((outcome?, done))
    })
}
