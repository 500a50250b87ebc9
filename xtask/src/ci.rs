//! `cargo xtask ci`: all that a change must pass, each step timed.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::{fuzz, lint, step::seconds, test};

type Step = (&'static str, fn() -> Result<()>);

/// In this order, since what is quick to fail should fail first.
const STEPS: &[Step] = &[
    ("lint", lint::run),
    ("test", || test::run(&test::TestArgs::default())),
    ("fuzz", fuzz::smoke),
];

/// Runs the verb: every step, whatever became of those before.
pub(crate) fn run() -> Result<()> {
    let results: Vec<_> = STEPS.iter().map(run_step).collect();
    println!();
    for (name, duration, result) in &results {
        let word = if result.is_ok() { "passed" } else { "FAILED" };
        println!("{name:<8} {word:<8} {:>9}", seconds(*duration));
    }
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, _, result)| result.is_err())
        .map(|(name, ..)| *name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn run_step((name, step): &Step) -> (&'static str, Duration, Result<()>) {
    println!("=== {name}");
    let start = Instant::now();
    let result = step();
    if let Err(error) = &result {
        eprintln!("{name}: {error:#}");
    }
    (*name, start.elapsed(), result)
}
