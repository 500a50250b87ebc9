//! What was done, one line a step, each with its number and how long it took.

use std::time::{Duration, Instant};

/// How wide a line may be before its time, which then stands on the same line all the same.
const WIDTH: usize = 98;

/// Counts and times steps.
pub(super) struct Steps {
    number: u32,
    since: Instant,
}

impl Steps {
    /// Begins the first step.
    pub(super) fn begin() -> Self {
        Self {
            number: 1,
            since: Instant::now(),
        }
    }

    /// Tells that the step is done, and begins the next.
    pub(super) fn done(&mut self, what: &str) {
        println!("{}", line(self.number, what, self.since.elapsed()));
        self.number += 1;
        self.skip();
    }

    /// Counts the time until now to no step.
    pub(super) fn skip(&mut self) {
        self.since = Instant::now();
    }
}

fn line(number: u32, what: &str, took: Duration) -> String {
    let (text, seconds) = (format!("{number}. {what}"), took.as_secs_f64());
    format!("{text:<WIDTH$} {seconds:>6.2} s")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_aligned() {
        let quick = line(1, "short", Duration::from_millis(1250));
        let slow = line(10, "a longer one", Duration::from_secs(100));
        assert_eq!(quick.len(), slow.len());
        assert!(quick.starts_with("1. short ") && quick.ends_with("  1.25 s"));
    }
}
