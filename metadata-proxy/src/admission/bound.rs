//! How many requests may be with an upstream at once: a fixed number, or what it is found to take.
//!
//! Neutron's agent listens with a backlog of 5, so a connect beyond that is refused with `EAGAIN`
//! at once; how many it takes depends on how many it serves at a time. That refusal is the only
//! signal used: it is exact, while response times say nothing when nova's answers take anything
//! from one millisecond to ten seconds.
//!
//! - After a refusal nobody new is let through until those that were refused got in.
//! - If they got in without a connection having ended, or more of them than one, they only came
//!   faster than the agent accepts, and nothing changes. Otherwise the agent takes no more than it
//!   had, and the bound is lowered to that (a large one by an eighth at least: connections that the
//!   agent is done with, and whose answer was not read yet, still count).
//! - Whether a connection had ended is known a moment late, so pace is no excuse for ever: who is
//!   refused at the bound time after time, and never gets in there at once, asks for too much.
//! - A connect that succeeds at the bound while requests wait raises it by one, so the first burst
//!   finds the bound by itself. Once it was lowered there is a pause between any two steps, which
//!   grows with each step that had to be taken back and shrinks with each that had not.
//!
//! Pure state: [`super::queue::Queue`] keeps it under its lock.

use std::{
    num::NonZeroU32,
    time::{Duration, Instant},
};

/// How the number of requests with an upstream is bounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BoundPolicy {
    /// Always this many.
    Fixed(NonZeroU32),
    /// As many as the upstream is found to take.
    Adaptive {
        /// Never more than this.
        ceiling: NonZeroU32,
    },
}

impl BoundPolicy {
    /// The most this policy ever allows.
    #[must_use]
    pub const fn ceiling(self) -> u32 {
        match self {
            Self::Fixed(bound) | Self::Adaptive { ceiling: bound } => bound.get(),
        }
    }
}

/// A backlog of 5 takes one more than that, even from an agent that accepts nothing (measured).
const START: u32 = 6;
/// The unit of pauses after a refusal.
const PAUSE: Duration = Duration::from_millis(1);
/// The pause is at most [`PAUSE`] times two to the power of this: a quarter of a second.
const LONGEST_PAUSE: u32 = 8;
/// When none gets in for this long, they did not come too fast.
const OVERDUE: Duration = Duration::from_millis(50);

/// How often in a row pace is the excuse for a refusal at the bound.
const EXCUSES: u32 = 2;

/// The bound in force.
#[derive(Debug)]
pub(super) struct Bound {
    policy: BoundPolicy,
    limit: u32,
    connected: u32,
    /// Requests that were refused and have not got in yet.
    bounced: u32,
    /// How many connections the agent takes while there are such.
    hold: u32,
    refusal: Option<Refusal>,
    pause: u32,
    quiet_until: Option<Instant>,
    /// Whether the last step up had not to be taken back so far.
    on_trial: bool,
    /// Refusals at the bound that were put down to pace, since somebody got in there at once.
    excused: u32,
    refusals: u64,
}

/// What is known since the first of some refused requests was.
#[derive(Debug)]
struct Refusal {
    /// When it was, or when one of them got in last.
    since: Instant,
    /// How many were connected when it was.
    connected: u32,
    /// How many connections ended since.
    closed: u32,
    /// Whether the bound was lowered for it.
    judged: bool,
}

impl Bound {
    pub(super) fn new(policy: BoundPolicy) -> Self {
        let limit = match policy {
            BoundPolicy::Fixed(bound) => bound.get(),
            BoundPolicy::Adaptive { ceiling } => ceiling.get().min(START),
        };
        Self {
            policy,
            limit,
            connected: 0,
            bounced: 0,
            hold: 0,
            refusal: None,
            pause: 0,
            quiet_until: None,
            on_trial: false,
            excused: 0,
            refusals: 0,
        }
    }

    /// How many requests may be with the upstream now, at least 1.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
    }

    /// How many may be now: fewer than the bound while some were refused.
    pub(super) fn allowed(&self) -> u32 {
        if self.bounced > 0 {
            self.limit.min(self.hold)
        } else {
            self.limit
        }
    }

    /// Whether some were refused and have not got in yet.
    pub(super) const fn is_held(&self) -> bool {
        self.bounced > 0
    }

    /// How many connections the upstream has taken and not finished with.
    pub(super) const fn connected(&self) -> u32 {
        self.connected
    }

    /// How many connects were refused because the backlog was full.
    pub(super) const fn refusals(&self) -> u64 {
        self.refusals
    }

    pub(super) const fn ceiling(&self) -> u32 {
        self.policy.ceiling()
    }

    /// Puts another policy in force, keeping what was learned as far as it allows.
    pub(super) fn set_policy(&mut self, policy: BoundPolicy) {
        self.limit = match policy {
            BoundPolicy::Fixed(bound) => bound.get(),
            BoundPolicy::Adaptive { ceiling } => self.limit.min(ceiling.get()),
        };
        self.policy = policy;
    }

    /// A connect succeeded.
    ///
    /// `bounced`: it had been refused before. `pressed`: requests wait for a place; only then is
    /// there reason to allow more.
    pub(super) fn opened(&mut self, bounced: bool, pressed: bool, clock: impl Fn() -> Instant) {
        self.connected += 1;
        self.hold = self.hold.max(self.connected);
        if bounced {
            if let Some(refusal) = &mut self.refusal {
                refusal.since = clock();
            }
            self.settle(&clock);
        } else if self.connected >= self.limit {
            self.excused = 0;
        }
        if pressed {
            self.probe(clock());
        }
    }

    /// A connection is finished with.
    pub(super) const fn closed(&mut self) {
        self.connected -= 1;
        if let Some(refusal) = &mut self.refusal {
            refusal.closed += 1;
        }
    }

    /// A connect was refused because the backlog is full; `anew`: for this request the first time.
    pub(super) fn refused(&mut self, anew: bool, now: Instant) {
        self.refusals += 1;
        self.bounced += u32::from(anew);
        self.hold = self.connected;
        match &mut self.refusal {
            None => {
                self.refusal = Some(Refusal {
                    since: now,
                    connected: self.connected,
                    closed: 0,
                    judged: false,
                });
            }
            Some(refusal) => {
                let overdue = now.saturating_duration_since(refusal.since) >= OVERDUE;
                if overdue && !std::mem::replace(&mut refusal.judged, true) {
                    let connected = refusal.connected;
                    self.lower(connected, now);
                }
            }
        }
    }

    /// A request that was refused got in, or was given up.
    pub(super) fn settle(&mut self, clock: impl Fn() -> Instant) {
        self.bounced -= 1;
        if self.bounced > 0 {
            return;
        }
        let Some(refusal) = self.refusal.take() else {
            return;
        };
        let mut too_fast = refusal.closed == 0 || self.connected > refusal.connected + 1;
        if too_fast && refusal.connected + 1 >= self.limit {
            self.excused += 1;
            too_fast = self.excused <= EXCUSES;
        }
        if !refusal.judged && !too_fast {
            self.lower(refusal.connected, clock());
        }
    }

    /// Allows one more if all that are allowed are connected, and it may be tried.
    pub(super) fn probe(&mut self, now: Instant) {
        if self.is_held()
            || self.connected != self.limit
            || self.limit == self.ceiling()
            || self.is_quiet(now)
        {
            return;
        }
        if self.on_trial {
            self.pause = self.pause.saturating_sub(1);
        }
        self.limit += 1;
        self.on_trial = true;
        self.rest(now);
    }

    /// Allows no more than the upstream was found to take.
    fn lower(&mut self, takes: u32, now: Instant) {
        if matches!(self.policy, BoundPolicy::Fixed(_)) {
            return;
        }
        self.excused = 0;
        self.limit = self.limit.min(takes.max(1));
        if std::mem::take(&mut self.on_trial) || !self.is_quiet(now) {
            self.limit -= self.limit / 8;
            self.pause = (self.pause + 2).min(LONGEST_PAUSE);
            self.rest(now);
        }
    }

    /// Lets no step follow until the present pause is over; there is none before the first lowering.
    fn rest(&mut self, now: Instant) {
        if self.pause > 0 {
            self.quiet_until = Some(now + PAUSE * (1 << self.pause));
        }
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.quiet_until.is_some_and(|until| now < until)
    }
}

#[cfg(test)]
mod tests;
