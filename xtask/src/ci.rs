//! `cargo xtask ci`: all that a change must pass, each step timed.

use std::{
    env,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    step::{self, seconds},
    test::result_line,
};

/// Verbs as one would type them, in this order, since what is quick to fail should fail first.
const STEPS: &[&str] = &[
    "lint",
    "test",
    "fuzz --short --seconds 3",
    "pgo --check",
    "drill --short",
    "vm-test",
    "vm-test --kernel 6.12 --variant all",
    "vm-guest",
];

/// Runs the verb: every step, whatever became of those before.
pub(crate) fn run() -> Result<()> {
    let start = Instant::now();
    let results: Vec<_> = STEPS.iter().map(|step| run_step(step)).collect();
    let width = STEPS.iter().map(|step| step.len()).max().unwrap_or(0);
    println!();
    for (name, duration, result) in &results {
        let word = if result.is_ok() { "passed" } else { "FAILED" };
        println!("{name:<width$} {word:<8} {:>9}", seconds(*duration));
    }
    let failed: Vec<_> = results
        .iter()
        .filter(|(_, _, result)| result.is_err())
        .map(|(name, ..)| *name)
        .collect();
    println!(
        "\n{}",
        result_line(
            results.len() - failed.len(),
            failed.len(),
            0,
            start.elapsed()
        )
    );
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

/// In a process of its own: some verbs enter namespaces.
fn run_step(step: &'static str) -> (&'static str, Duration, Result<()>) {
    println!("=== {step}");
    let start = Instant::now();
    let result = env::current_exe()
        .context("where is this program?")
        .and_then(|xtask| step::run(Command::new(xtask).args(step.split(' '))));
    if let Err(error) = &result {
        eprintln!("{step}: {error:#}");
    }
    (step, start.elapsed(), result)
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::Xtask;

    #[test]
    fn every_step_is_a_verb() {
        for step in STEPS {
            Xtask::try_parse_from(std::iter::once("xtask").chain(step.split(' '))).unwrap();
        }
    }
}
