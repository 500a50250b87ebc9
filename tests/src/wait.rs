//! Waiting for a condition with a deadline; the only way anything here waits.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// Asks again and again until the answer is there.
///
/// # Errors
/// The deadline has passed, or the question itself failed.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut ask: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    let mut pause = FIRST_PAUSE;
    loop {
        if let Some(answer) = ask()? {
            return Ok(answer);
        }
        if start.elapsed() >= deadline {
            bail!("{what}: not within {deadline:?}");
        }
        thread::sleep(pause);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Waits until the condition holds.
///
/// # Errors
/// The deadline has passed.
pub fn wait_until(
    what: &str,
    deadline: Duration,
    mut condition: impl FnMut() -> bool,
) -> Result<()> {
    wait_for(what, deadline, || Ok(condition().then_some(())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_condition_that_comes_true_ends_the_waiting() {
        let mut asked = 0;
        wait_until("third time", Duration::from_secs(5), || {
            asked += 1;
            asked == 3
        })
        .unwrap();
        assert_eq!(asked, 3);
    }

    #[test]
    fn a_deadline_is_kept_and_named() {
        let start = Instant::now();
        let error = wait_until("never", Duration::from_millis(20), || false).unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert!(error.to_string().contains("never"), "{error}");
    }
}
