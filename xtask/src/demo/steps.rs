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

/// The time belongs to the first line.
fn line(number: u32, what: &str, took: Duration) -> String {
    let (first, rest) = what.split_once('\n').unwrap_or((what, ""));
    let separator = if what.contains('\n') { "\n" } else { "" };
    let (first, seconds) = (format!("{number}. {first}"), took.as_secs_f64());
    format!("{first:<WIDTH$} {seconds:>6.2} s{separator}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_aligned_and_on_the_first_line() {
        let took = Duration::from_millis(1250);
        let short = line(1, "short", took);
        let more = line(2, "a longer one\n  and more", took);
        assert_eq!(short.len(), more.lines().next().unwrap().len());
        assert!(short.starts_with("1. short ") && short.ends_with("  1.25 s"));
        assert!(more.ends_with(" s\n  and more"), "{more}");
    }
}
