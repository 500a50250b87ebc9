//! How long to wait before another attempt: longer each time, and never the same for all.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Pauses that grow from attempt to attempt.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
    longest: Duration,
}

impl Backoff {
    /// The agent's backlog is full: it empties by one with every request it takes.
    pub(super) const fn for_full_backlog() -> Self {
        Self {
            next: Duration::from_millis(1),
            longest: Duration::from_millis(20),
        }
    }

    /// Nobody listens: a restart takes seconds, and who waits should notice its end soon.
    pub(super) const fn for_absent() -> Self {
        Self {
            next: Duration::from_millis(5),
            longest: Duration::from_millis(200),
        }
    }

    /// When to make the next attempt, not past `deadline`; `None` if there is none.
    pub(super) fn next(&mut self, deadline: Instant) -> Option<Instant> {
        let now = Instant::now();
        if now >= deadline {
            return None;
        }
        // Anything from half of it to all of it.
        let half = self.next / 2;
        let pause = half + half.mul_f64(chance());
        self.next = (self.next * 2).min(self.longest);
        Some(deadline.min(now + pause))
    }

    /// Waits for the next attempt; says whether there is one.
    pub(super) async fn pause(&mut self, deadline: Instant) -> bool {
        let Some(next) = self.next(deadline) else {
            return false;
        };
        sleep_until(next).await;
        true
    }
}

/// A random number between 0 and 1.
fn chance() -> f64 {
    // Every `RandomState` has other keys.
    let random = RandomState::new().hash_one(()) >> 32;
    f64::from(u32::try_from(random).unwrap_or(u32::MAX)) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_grow_differ_and_end_at_the_deadline() {
        let deadline = Instant::now() + Duration::from_millis(60);
        let mut backoff = Backoff::for_absent();
        let mut attempts = 0;
        while backoff.pause(deadline).await {
            attempts += 1;
        }
        // 5, 10, 20, 40 at most; half of each at least.
        assert!((3..=7).contains(&attempts), "{attempts}");
        assert!(Instant::now() >= deadline);
    }

    #[test]
    fn chances_differ() {
        assert!(
            (0..4)
                .map(|_| chance())
                .any(|one| (one - chance()).abs() > f64::EPSILON)
        );
    }
}
