//! The life of a tenant as a value: its phases, and how long to wait after a failure.

use std::time::{Duration, Instant, SystemTime};

/// How a tenant is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Declared, not yet tried.
    Pending,
    /// Its guests are served.
    Serving,
    /// It could not be served, and is tried again.
    Failing {
        /// Why.
        reason: String,
        /// When it is tried again.
        retry_at: Instant,
    },
    /// Its stand-in ended; it waits for the next one.
    Suspended,
}

impl Phase {
    /// The word for it in output and metrics.
    #[must_use]
    pub const fn label(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Serving => "serving",
            Self::Failing { .. } => "failing",
            Self::Suspended => "suspended",
        }
    }
}

/// Bounds of the wait after a failure.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The first wait.
    pub min: Duration,
    /// The longest wait.
    pub max: Duration,
}

impl Backoff {
    /// How long to wait after this many failures in a row, doubling from the first.
    #[must_use]
    pub fn after(self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(20);
        self.min.saturating_mul(1 << doublings).min(self.max)
    }
}

/// A phase with its history.
#[derive(Clone, Debug)]
pub(super) struct Life {
    phase: Phase,
    since: SystemTime,
    failures: u32,
    backoff: Backoff,
}

impl Life {
    /// A life that begins.
    pub(super) fn new(backoff: Backoff) -> Self {
        Self {
            phase: Phase::Pending,
            since: SystemTime::now(),
            failures: 0,
            backoff,
        }
    }

    pub(super) const fn phase(&self) -> &Phase {
        &self.phase
    }

    pub(super) const fn since(&self) -> SystemTime {
        self.since
    }

    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// It is served now. Returns whether that is news.
    pub(super) fn served(&mut self) -> bool {
        self.failures = 0;
        self.enter(Phase::Serving)
    }

    /// It failed. Returns whether the reason is news, so that each is logged once.
    pub(super) fn failed(&mut self, reason: String, now: Instant) -> bool {
        self.failures = self.failures.saturating_add(1);
        let is_news =
            !matches!(&self.phase, Phase::Failing { reason: last, .. } if *last == reason);
        let retry_at = now + self.backoff.after(self.failures);
        self.enter(Phase::Failing { reason, retry_at });
        is_news
    }

    /// Its stand-in ended.
    pub(super) fn suspended(&mut self) {
        self.enter(Phase::Suspended);
    }

    /// It is to be tried anew, without a history.
    pub(super) fn renewed(&mut self) {
        self.failures = 0;
        self.enter(Phase::Pending);
    }

    /// When it is to be tried again, if it is.
    pub(super) const fn retry_at(&self) -> Option<Instant> {
        match self.phase {
            Phase::Failing { retry_at, .. } => Some(retry_at),
            Phase::Pending | Phase::Serving | Phase::Suspended => None,
        }
    }

    fn enter(&mut self, phase: Phase) -> bool {
        let is_news = self.phase.label() != phase.label();
        if is_news {
            self.since = SystemTime::now();
        }
        self.phase = phase;
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        min: Duration::from_millis(10),
        max: Duration::from_secs(5),
    };

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        assert_eq!(BACKOFF.after(1), Duration::from_millis(10));
        assert_eq!(BACKOFF.after(2), Duration::from_millis(20));
        assert_eq!(BACKOFF.after(4), Duration::from_millis(80));
        assert_eq!(BACKOFF.after(u32::MAX), Duration::from_secs(5));
    }

    #[test]
    fn a_reason_is_news_once() {
        let mut life = Life::new(BACKOFF);
        let now = Instant::now();
        assert!(life.failed("no".to_owned(), now));
        assert!(!life.failed("no".to_owned(), now));
        assert!(life.failed("still no".to_owned(), now));
        assert_eq!(life.failures(), 3);
        assert_eq!(life.retry_at(), Some(now + Duration::from_millis(40)));
        assert!(life.served());
        assert_eq!((life.failures(), life.retry_at()), (0, None));
        assert!(!life.served());
    }

    #[test]
    fn a_suspended_tenant_is_not_retried_until_renewed() {
        let mut life = Life::new(BACKOFF);
        life.suspended();
        assert_eq!(life.retry_at(), None);
        life.renewed();
        assert_eq!(life.phase(), &Phase::Pending);
    }
}
