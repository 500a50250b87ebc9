//! One approximated sliding window, as haproxy's `http_req_rate(period)` counts.
//!
//! Source: haproxy 2.6's `freq_ctr`: the estimate is the count of the running period plus that of
//! the one before, weighted by what the running period has left. Pure arithmetic on milliseconds of
//! a clock the caller chose; how long a period is comes with every call, so a configuration reload
//! that changes it loses no count.

use serde::{Deserialize, Serialize};

/// Counts of the running period and of the one before.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Window {
    /// When the running period began, milliseconds.
    start: u64,
    current: u32,
    previous: u32,
}

/// A window, as one process tells it to the next: with ages instead of moments.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// How long the running period has run, milliseconds.
    age: u64,
    current: u32,
    previous: u32,
}

impl Window {
    /// What another process needs to go on with this window.
    pub(super) const fn record(self, now: u64) -> Record {
        Record {
            age: now.saturating_sub(self.start),
            current: self.current,
            previous: self.previous,
        }
    }

    /// Goes on with the window of another process, as it was at `at`.
    pub(super) const fn resumed(record: &Record, at: u64) -> Self {
        Self {
            start: at.saturating_sub(record.age),
            current: record.current,
            previous: record.previous,
        }
    }

    /// A window that begins with its first event.
    pub(super) const fn starting(now: u64) -> Self {
        Self {
            start: now,
            current: 0,
            previous: 0,
        }
    }

    /// Counts one event.
    pub(super) fn count(&mut self, now: u64, period: u64) {
        self.rotate(now, period);
        self.current = self.current.saturating_add(1);
    }

    /// Events within the last `period`, approximately.
    pub(super) fn estimate(mut self, now: u64, period: u64) -> u64 {
        self.rotate(now, period);
        let remaining = period - now.saturating_sub(self.start);
        // haproxy divides the whole sum, and so rounds down once.
        (u64::from(self.current) * period + u64::from(self.previous) * remaining) / period
    }

    /// How long until one more event leaves the estimate at or below `limit`, milliseconds, if none
    /// comes before it; `None` if that is never.
    pub(super) fn clear_after(self, now: u64, period: u64, limit: u64) -> Option<u64> {
        let fits = |wait: u64| {
            let mut window = self;
            window.count(now + wait, period);
            window.estimate(now + wait, period) <= limit
        };
        // After two periods nothing is remembered; until then the estimate only falls.
        let (mut low, mut high) = (0, 2 * period);
        if !fits(high) {
            return None;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if fits(middle) {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Some(high)
    }

    /// Brings the running period up to `now`, so that `start <= now < start + period`.
    fn rotate(&mut self, now: u64, period: u64) {
        if now.saturating_sub(self.start) < period {
            return;
        }
        self.previous = self.current;
        self.current = 0;
        self.start += period;
        if now - self.start >= period {
            self.previous = 0;
            self.start = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_estimate_falls_through_the_next_period() {
        let mut window = Window::starting(1_000);
        for _ in 0..10 {
            window.count(1_500, 1_000);
        }
        assert_eq!(window.estimate(1_999, 1_000), 10);
        assert_eq!(window.estimate(2_000, 1_000), 10);
        assert_eq!(window.estimate(2_500, 1_000), 5);
        assert_eq!(window.estimate(2_999, 1_000), 0);
        assert_eq!(window.estimate(9_000, 1_000), 0);
    }

    proptest! {
        #[test]
        fn clear_after_is_the_first_moment_that_fits(
            gaps in proptest::collection::vec(0_u64..700, 1..40),
            period in 1_u64..2_000,
            limit in 1_u64..20,
        ) {
            let mut now = 5;
            let mut window = Window::starting(now);
            for gap in gaps {
                now += gap;
                window.count(now, period);
            }
            let wait = window.clear_after(now, period, limit).unwrap();
            let fits = |wait| {
                let mut later = window;
                later.count(now + wait, period);
                later.estimate(now + wait, period) <= limit
            };
            prop_assert!(fits(wait));
            prop_assert!(wait == 0 || !fits(wait - 1));
        }
    }

    #[test]
    fn a_limit_of_nothing_never_clears() {
        let mut window = Window::starting(0);
        window.count(0, 1_000);
        assert_eq!(window.clear_after(0, 1_000, 0), None);
    }
}
