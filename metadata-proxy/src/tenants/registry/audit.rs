//! Makes sure, within a period, that every tenant is served: netlink does not tell everything.
//!
//! The links on each tenant's devices are looked at once in a period, a share of them at a time, so that
//! a node with a thousand is never busy with it; and once in a longer period its service is proved by a
//! connection. Their entries in the map, which one look tells of all, are looked at when a period
//! begins. What netlink tells, or a worker that has lost its listener or refuses a guest for what the map
//! says, is repaired at once and not looked for here.

use std::{
    collections::{HashMap, HashSet},
    mem,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use tracing::{error, info, warn};

use super::{Command, Registry, Served, turns::Turns};
use crate::{
    config::AuditConfig,
    identity::Tenant,
    kernel::{KernelError, Repair},
    netns::{Netns, NetnsCookie, NetnsId},
    tenants::{
        Fault, Provider, Verdict,
        probe::{self, Target},
    },
};

/// Steps of a period, at least: to wake up is dearer than to look at a few tenants.
const FEWEST_STEPS: u32 = 4;
/// Steps of a period, at most.
const MOST_STEPS: u32 = 40;
/// Tenants that a step looks at, if that many steps do: whoever waits for the registry meanwhile does not
/// notice.
const TENANTS_A_STEP: usize = 250;
/// Connections at a time, where a period has that many: each costs less than one alone, for which the
/// processor's caches are cold. Few enough that nobody notices who waits for the thread meanwhile.
const CONNECTS: usize = 32;

/// When which part of the audit is due.
pub(super) struct Audit {
    periods: AuditConfig,
    next: Instant,
    /// Steps that the period has.
    steps: u32,
    /// Those of them that are over.
    over: u32,
    /// Whose turn it is to be connected to for the first time, since when they are served.
    new: Turns,
    /// Whose turn it is to be connected to again.
    connects: Turns,
    /// How many of them steps have been saved up for.
    saved: usize,
    /// What the map says, filled anew when a period begins.
    declared: HashMap<NetnsCookie, Tenant>,
    /// What all tenants share and could not be put back.
    fault: Option<String>,
    /// Why pins of links could not be put back.
    pins_fault: Option<String>,
}

impl Audit {
    pub(super) fn new(periods: AuditConfig) -> Self {
        Self {
            periods,
            next: Instant::now() + periods.interval / FEWEST_STEPS,
            steps: FEWEST_STEPS,
            over: 0,
            new: Turns::default(),
            connects: Turns::default(),
            saved: 0,
            declared: HashMap::new(),
            fault: None,
            pins_fault: None,
        }
    }

    /// Audits a tenant from now on, which is served since then.
    pub(super) fn queue(&mut self, served: Instant, netns: NetnsId) {
        self.new.queue(served, netns);
    }

    pub(super) const fn next(&self) -> Instant {
        self.next
    }

    /// Begins a step of a registry with so many tenants; whether a period begins with it.
    fn step(&mut self, now: Instant, tenants: usize) -> bool {
        let begins = self.over == 0;
        if begins {
            self.steps = steps(tenants);
        }
        self.over = (self.over + 1) % self.steps;
        self.next = now + self.pause();
        begins
    }

    /// From one step to the next.
    fn pause(&self) -> Duration {
        self.periods.interval / self.steps
    }

    pub(super) const fn set_periods(&mut self, periods: AuditConfig) {
        self.periods = periods;
    }
}

impl Registry {
    /// Audits what is due with this step.
    pub(super) async fn audit(&mut self) {
        let now = Instant::now();
        let begins = self.audit.step(now, self.entries.len());
        if self.is_quiet {
            return;
        }
        // Before single links are missed, which go with a directory or a mount.
        self.mend();
        let mut unwhole = self.detached();
        let mut doubtful = Vec::new();
        if begins {
            self.mend_pins();
            let (missing, faulty) = self.wrong();
            unwhole.extend(missing);
            doubtful.extend(faulty);
        }
        for netns in unwhole {
            self.converge(netns).await;
            doubtful.push(netns);
        }
        let mut targets = self.turns_to_connect(now);
        targets.extend(doubtful);
        targets.sort_unstable();
        targets.dedup();
        let targets = targets
            .into_iter()
            .filter_map(|netns| self.target(netns, now))
            .collect();
        self.prove(targets).await;
    }

    /// Whose service is to be proved by a connection now. Connections are dear: they go at an even
    /// pace, and those who have been proved before some at a time.
    fn turns_to_connect(&mut self, now: Instant) -> Vec<NetnsId> {
        let connect_interval = self.audit.periods.connect_interval;
        let pause = self.audit.pause();
        let steps = connect_interval.as_millis() / pause.as_millis().max(1);
        let steps = usize::try_from(steps).unwrap_or(usize::MAX);
        // So many are saved up for; a turn comes that much early rather than late.
        let saving = (steps / 2).min(self.audit.steps as usize);
        let steps = (steps - saving).max(1);
        let tenants = self.entries.len();
        self.audit.saved += tenants.div_ceil(steps);
        if self.audit.saved < CONNECTS.min(tenants * saving / steps) {
            return Vec::new();
        }
        let most = mem::take(&mut self.audit.saved);
        let served = |netns: NetnsId| self.entries.get(&netns)?.served.as_ref();
        let is_new = |netns, since| {
            served(netns).is_some_and(|it| it.connected.is_none() && it.since == since)
        };
        let mut turns = self.audit.new.take(most, now, is_new);
        let early = pause * u32::try_from(saving).unwrap_or(MOST_STEPS);
        let patience = connect_interval.saturating_sub(early);
        if let Some(until) = now.checked_sub(patience) {
            let most = most - turns.len();
            let is_current = |netns, at| served(netns).is_some_and(|it| it.connected == Some(at));
            turns.extend(self.audit.connects.take(most, until, is_current));
        }
        turns
    }

    /// Puts back what all tenants share; each thing that cannot be is logged once.
    pub(super) fn mend(&mut self) {
        match self.kernel.mend() {
            Ok(repairs) => {
                for repair in &repairs {
                    self.repairs.count(*repair);
                }
                if !repairs.is_empty() {
                    let what: Vec<_> = repairs.iter().map(|repair| repair.label()).collect();
                    warn!(
                        what = what.join(", "),
                        "somebody took away what all tenants share; it is put back"
                    );
                    if repairs.contains(&Repair::Bpffs) {
                        // With the directory went every pin in it.
                        self.mend_pins();
                    }
                }
                self.audit.fault = None;
            }
            Err(fault) => tell_once(&mut self.audit.fault, &fault, "what all tenants share"),
        }
    }

    /// Puts back the pins of links, by which the next process finds them.
    fn mend_pins(&mut self) {
        match self.kernel.mend_pins() {
            Ok(mended) => {
                self.audit.pins_fault = None;
                if mended == 0 {
                    return;
                }
                for _ in 0..mended {
                    self.repairs.count(Repair::Pin);
                }
                warn!(
                    pins = mended,
                    "somebody took away pins of links; they are put back"
                );
            }
            Err(fault) => tell_once(&mut self.audit.pins_fault, &fault, "pins of links"),
        }
    }

    /// Tenants of which a device of the next share is not attached to any more.
    fn detached(&self) -> HashSet<NetnsId> {
        // One fewer than there are steps, so that a busy step can be made up for.
        let lost = self.kernel.lost_links(self.audit.steps as usize - 1);
        if lost.is_empty() {
            return HashSet::new();
        }
        let lost: HashSet<_> = lost.into_iter().collect();
        let is_lost = |served: &Served| lost.contains(&served.place.cookie);
        self.entries
            .iter()
            .filter(|(_, entry)| entry.served.as_ref().is_some_and(is_lost))
            .map(|(netns, _)| *netns)
            .collect()
    }

    /// Tenants in service for which something is missing, and those that the last audit found
    /// something wrong with.
    ///
    /// What is missing is an attachment that was refused, or the entry in the map: it is not there, or
    /// is another's, which counts for all tenants if the map cannot be read. What somebody else wrote
    /// is theirs to take back.
    fn wrong(&mut self) -> (Vec<NetnsId>, Vec<NetnsId>) {
        // Kept from period to period, so that no memory is asked for and given back each time.
        let found = &mut self.audit.declared;
        found.clear();
        let told = self.kernel.declared(&mut |cookie, declared| {
            found.insert(cookie, declared.tenant);
        });
        if told.is_err() {
            found.clear();
        }
        let (mut missing, mut faulty) = (Vec::new(), Vec::new());
        for (netns, entry) in &self.entries {
            let (Some(served), Some(declaration)) = (&entry.served, entry.declaration()) else {
                continue;
            };
            let is_declared = declaration.provider == Provider::Map
                || found.get(&served.place.cookie) == Some(&declaration.tenant);
            if !is_declared || !served.place.refused.is_empty() {
                missing.push(*netns);
            } else if served.fault.is_some() {
                faulty.push(*netns);
            }
        }
        (missing, faulty)
    }

    fn target(&mut self, netns: NetnsId, now: Instant) -> Option<(Target, Netns)> {
        let served = self.entries.get_mut(&netns)?.served.as_mut()?;
        served.connected = Some(now);
        self.audit.connects.queue(now, netns);
        let target = Target {
            netns,
            cookie: served.place.cookie,
            port: self.port,
        };
        // Without a way in it will be found gone by who watches for that.
        Netns::of_socket(&served.handle)
            .ok()
            .map(|namespace| (target, namespace))
    }

    /// Connects from inside each namespace; what comes of it is told to the registry later, so that
    /// nobody who does not answer keeps it.
    async fn prove(&self, targets: Vec<(Target, Netns)>) {
        if targets.is_empty() {
            return;
        }
        let probes = Arc::clone(&self.probes);
        let (sender, inbox) = tokio::sync::mpsc::unbounded_channel();
        let work = {
            let probes = Arc::clone(&probes);
            move |target: Target| probe::send(&probes, target, &sender)
        };
        let sent = match self.netns.run_each(targets, work).await {
            Ok(sent) => sent,
            Err(error) => {
                warn!(%error, "tenants are not audited");
                return;
            }
        };
        let mut open = Vec::with_capacity(sent.len());
        let mut failed: Vec<Verdict> = Vec::new();
        for (target, result) in sent {
            match result {
                Ok(Ok(probe)) => open.push((target.netns, probe)),
                Ok(Err(fault)) => failed.push((target.netns, Err(fault))),
                Err(error) => {
                    failed.push((target.netns, Err(Fault::NotTried(error.to_string()))));
                }
            }
        }
        let registry = self.sender.clone();
        tokio::spawn(async move {
            let mut verdicts = probe::verdicts(&probes, open, inbox).await;
            verdicts.append(&mut failed);
            // A registry that has ended wants to know nothing.
            let _ = registry.send(Command::Audited(verdicts)).await;
        });
    }

    /// Notes what the audit found, and has what is wrong put right.
    pub(super) fn judge(&mut self, verdicts: Vec<Verdict>) {
        for (netns, verdict) in verdicts {
            let Some(entry) = self.entries.get_mut(&netns) else {
                continue;
            };
            let tenant = entry.declaration().map(|declaration| declaration.tenant);
            let (Some(served), Some(tenant)) = (&mut entry.served, tenant) else {
                continue;
            };
            match verdict {
                Ok(()) => {
                    served.proved = Some(SystemTime::now());
                    if served.fault.take().is_some() {
                        info!(%tenant, "service is proved again");
                    }
                }
                Err(fault) => {
                    if served.fault.as_ref() != Some(&fault) {
                        warn!(%tenant, %fault, "service is not proved");
                    }
                    served.fault = Some(fault);
                    self.dirty.insert(netns);
                }
            }
        }
    }
}

/// Into how many steps a period is divided where there are so many tenants.
fn steps(tenants: usize) -> u32 {
    u32::try_from(tenants / TENANTS_A_STEP)
        .unwrap_or(MOST_STEPS)
        .clamp(FEWEST_STEPS, MOST_STEPS)
}

/// Logs why something cannot be put back, unless that was the last that was said of it.
fn tell_once(last: &mut Option<String>, fault: &KernelError, what: &'static str) {
    let fault = fault.to_string();
    if last.as_ref() != Some(&fault) {
        error!(what, error = fault, "cannot be put back; it is tried again");
    }
    *last = Some(fault);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_tenants_are_audited_in_more_steps_and_every_period_has_a_first() {
        for (tenants, expected) in [(0, 4), (1_249, 4), (1_250, 5), (5_000, 20), (100_000, 40)] {
            let interval = Duration::from_secs(10);
            let mut audit = Audit::new(AuditConfig {
                interval,
                connect_interval: interval,
            });
            let now = Instant::now();
            let begun = (0..3 * expected)
                .filter(|_| audit.step(now, tenants))
                .count();
            assert_eq!(begun, 3, "{tenants}");
            assert_eq!(audit.next(), now + interval / expected, "{tenants}");
        }
    }
}
