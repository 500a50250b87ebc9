//! How many requests may be with an upstream at once: a fixed number, or what it is found to take.
//!
//! Neutron's agent listens with a backlog of 5, so a connect beyond that is refused with `EAGAIN`
//! at once; how many it takes depends on how many it serves at a time. That refusal is the only
//! signal used: it is exact, while response times say nothing when nova's answers take anything
//! from one millisecond to ten seconds.
//!
//! - A refusal lowers the bound to what *is* connected, and a large bound by an eighth at least:
//!   connections that the agent is done with, and whose answer was not read yet, still count.
//! - A connect that succeeds at the bound while requests wait raises it by one, so the first burst
//!   finds the bound by itself. After a refusal there is a pause between any two steps, which grows
//!   with each step that was refused and shrinks with each that was not.
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
/// The pause is at most [`PAUSE`] times two to the power of this: 4 s.
const LONGEST_PAUSE: u32 = 12;

/// The bound in force.
#[derive(Debug)]
pub(super) struct Bound {
    policy: BoundPolicy,
    limit: u32,
    connected: u32,
    pause: u32,
    quiet_until: Option<Instant>,
    /// Whether the last step up was not refused so far.
    on_trial: bool,
    refusals: u64,
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
            pause: 0,
            quiet_until: None,
            on_trial: false,
            refusals: 0,
        }
    }

    /// How many requests may be with the upstream now, at least 1.
    pub(super) const fn limit(&self) -> u32 {
        self.limit
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
    /// `pressed` is the time if requests wait for a place: only then is there reason to allow more.
    pub(super) fn opened(&mut self, pressed: Option<Instant>) {
        self.connected += 1;
        if let Some(now) = pressed {
            self.probe(now);
        }
    }

    /// A connection is finished with.
    pub(super) const fn closed(&mut self) {
        self.connected -= 1;
    }

    /// A connect was refused because the backlog is full.
    pub(super) fn refused(&mut self, now: Instant) {
        self.refusals += 1;
        if matches!(self.policy, BoundPolicy::Fixed(_)) {
            return;
        }
        self.limit = self.limit.min(self.connected.max(1));
        // Only the first after a step tells something: others were under way with it.
        if std::mem::take(&mut self.on_trial) || !self.is_quiet(now) {
            self.limit -= self.limit / 8;
            self.pause = (self.pause + 2).min(LONGEST_PAUSE);
            self.rest(now);
        }
    }

    /// Allows one more than are connected, if that is more than are allowed and may be tried.
    ///
    /// More may be connected than are allowed: those that were refused, and got in later. By itself
    /// that shows nothing, as the agent may be done with one whose answer was not read yet.
    pub(super) fn probe(&mut self, now: Instant) {
        let more = (self.connected + 1).min(self.policy.ceiling());
        if more > self.limit && !self.is_quiet(now) {
            if self.on_trial {
                self.pause = self.pause.saturating_sub(1);
            }
            self.limit = more;
            self.on_trial = true;
            self.rest(now);
        }
    }

    /// Lets nothing change until the present pause is over; there is none before the first refusal.
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
mod tests {
    use super::*;

    fn adaptive(ceiling: u32) -> Bound {
        Bound::new(BoundPolicy::Adaptive {
            ceiling: NonZeroU32::new(ceiling).unwrap(),
        })
    }

    /// Opens connections to an agent that takes `takes`, as fast as the bound allows.
    fn burst(bound: &mut Bound, takes: u32, now: Instant) {
        while bound.connected() < bound.limit() {
            if bound.connected() < takes {
                bound.opened(Some(now));
            } else {
                bound.refused(now);
            }
        }
    }

    #[test]
    fn one_burst_finds_what_the_agent_takes() {
        for (takes, found) in [(1, 1), (6, 6), (7, 7), (14, 13), (100, 88)] {
            let mut bound = adaptive(256);
            burst(&mut bound, takes, Instant::now());
            assert_eq!(bound.limit(), found);
            assert_eq!(bound.refusals(), 1);
        }
    }

    #[test]
    fn an_agent_that_never_refuses_gets_the_ceiling() {
        let mut bound = adaptive(64);
        burst(&mut bound, u32::MAX, Instant::now());
        assert_eq!(bound.limit(), 64);
    }

    #[test]
    fn a_settled_bound_is_hardly_ever_exceeded() {
        let mut bound = adaptive(256);
        let start = Instant::now();
        burst(&mut bound, 7, start);
        let mut now = start;
        // A serial agent, a millisecond each, always more waiting.
        for _ in 0..60_000 {
            now += Duration::from_millis(1);
            bound.closed();
            burst(&mut bound, 7, now);
            assert!((6..=8).contains(&bound.limit()));
        }
        assert!(
            bound.refusals() < 30,
            "{} refusals in a minute",
            bound.refusals()
        );
    }

    #[test]
    fn it_grows_again_when_the_agent_takes_more() {
        let mut bound = adaptive(256);
        let start = Instant::now();
        burst(&mut bound, 2, start);
        assert_eq!(bound.limit(), 2);
        let mut now = start;
        while bound.limit() < 7 {
            now += Duration::from_millis(1);
            bound.probe(now);
            burst(&mut bound, 7, now);
        }
        assert!(
            now - start < Duration::from_millis(20),
            "after {:?}",
            now - start
        );
    }

    #[test]
    fn without_anybody_waiting_it_does_not_grow() {
        let mut bound = adaptive(256);
        for _ in 0..START {
            bound.opened(None);
        }
        assert_eq!(bound.limit(), START);
    }

    #[test]
    fn it_never_falls_below_one() {
        let mut bound = adaptive(256);
        bound.refused(Instant::now());
        assert_eq!(bound.limit(), 1);
    }

    #[test]
    fn a_fixed_bound_stays() {
        let mut bound = Bound::new(BoundPolicy::Fixed(NonZeroU32::new(3).unwrap()));
        bound.opened(Some(Instant::now()));
        bound.refused(Instant::now());
        assert_eq!(bound.limit(), 3);
    }
}
