//! `cargo xtask test`: all tests, and how many passed.
//!
//! A test that needs root and has none fails the run, and so does one that was skipped.

use std::{
    env,
    io::{BufRead as _, BufReader, IsTerminal as _, Write as _, stdout},
    num::NonZeroUsize,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, BuildArgs},
    setup::{self, Purpose},
    step,
    workspace::{self, is_root},
};

/// The crate whose tests need root: namespaces, cgroups, kernel programs.
const ROOT_SUITE: &str = "metadata-proxy-tests";

/// Which tests to run.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct TestArgs {
    /// Runs only what needs no privileges
    #[arg(long, conflicts_with = "root")]
    unit: bool,
    /// Runs only what needs root
    #[arg(long)]
    root: bool,
    /// Runs only tests whose names contain this
    filter: Option<String>,
}

/// How many tests of a program run at once; whoever has set it knows better.
const THREADS: &str = "RUST_TEST_THREADS";

/// Part of the reason of a test that is ignored here because another verb runs it.
const ELSEWHERE: &str = "cargo xtask ";

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: usize,
    failed: usize,
}

/// What a test run printed.
#[derive(Debug, Default)]
struct Outcome {
    counts: Counts,
    /// Tests that were ignored although no other verb runs them.
    skipped: Vec<String>,
    succeeded: bool,
}

impl Outcome {
    fn include(&mut self, other: Self) {
        self.counts.passed += other.counts.passed;
        self.counts.failed += other.counts.failed;
        self.skipped.extend(other.skipped);
        self.succeeded &= other.succeeded;
    }
}

/// Runs the verb.
pub(crate) fn run(args: &TestArgs) -> Result<()> {
    let start = Instant::now();
    if args.unit {
        setup::ensure(Purpose::Build)?;
    } else {
        if !is_root() {
            bail!(
                "the tests in namespaces need root: run as root, or `cargo xtask test --unit` for \
                 the others"
            );
        }
        setup::ensure(Purpose::Test)?;
        // The tests start what is installed, as processes.
        if args.root {
            build::build(BuildArgs::DEBUG)?;
        } else {
            // Cargo builds them for the agent's own tests, with what features all of the workspace asks for.
            step::run(selected(args).arg("--no-run"))?;
            build::place_stand_in(BuildArgs::DEBUG)?;
        }
    }

    let mut tests = selected(args);
    if let Some(filter) = &args.filter {
        tests.args(["--", filter]);
    }
    let mut outcome = watch(&mut tests)?;
    if !args.unit && !args.root && args.filter.is_none() {
        outcome.include(measure_stand_in()?);
    }
    let Counts { passed, failed } = outcome.counts;
    println!(
        "\n{}",
        result_line(passed, failed, outcome.skipped.len(), start.elapsed())
    );
    if !outcome.succeeded || failed > 0 {
        bail!("tests failed");
    }
    if !outcome.skipped.is_empty() {
        bail!(
            "skipped, and no other verb runs them:\n  {}",
            outcome.skipped.join("\n  ")
        );
    }
    if passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Cargo's tests, of those crates that were asked for.
fn selected(args: &TestArgs) -> Command {
    let mut command = workspace::cargo("test");
    command.arg("--no-fail-fast");
    // Most tests wait for something most of the time.
    if env::var_os(THREADS).is_none() {
        let processors = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        command.env(THREADS, (2 * processors).to_string());
    }
    if args.root {
        command.args(["--package", ROOT_SUITE]);
    } else {
        command.arg("--workspace");
    }
    if args.unit {
        command.args(["--exclude", ROOT_SUITE]);
    }
    command
}

/// Runs the tests of what the stand-in costs: a debug build is no measure of that.
fn measure_stand_in() -> Result<Outcome> {
    let built = build::build(BuildArgs::RELEASE)?;
    watch(
        workspace::cargo("test")
            // One test of one crate; for that crate alone, it would be built once more.
            .args(["--workspace", "--test", "standin", "--", "--ignored"])
            .env("STANDIN", built.stand_in),
    )
}

/// Runs a test command, shows its output, and reads from it how tests ended.
fn watch(command: &mut Command) -> Result<Outcome> {
    if stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut outcome = Outcome::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo test says")?;
        let mut shown = stdout().lock();
        shown
            .write_all(&line)
            .and_then(|()| shown.write_all(b"\n"))
            .context("cannot print")?;
        let line = String::from_utf8_lossy(&line);
        if let Some(counts) = result(&line) {
            outcome.counts.passed += counts.passed;
            outcome.counts.failed += counts.failed;
        }
        outcome.skipped.extend(skipped(&line));
    }
    outcome.succeeded = child.wait().context("cargo test was lost")?.success();
    Ok(outcome)
}

/// How many tests ended how, in all, in the words of Rust's own test runner: what reads its results
/// takes the last such line, which would otherwise be that of the last of many test binaries.
pub(crate) fn result_line(passed: usize, failed: usize, ignored: usize, took: Duration) -> String {
    format!(
        "test result: {}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         0 filtered out; finished in {:.2}s",
        if failed == 0 { "ok" } else { "FAILED" },
        took.as_secs_f64()
    )
}

/// Reads `test result: ok. 18 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`.
fn result(line: &str) -> Option<Counts> {
    let (_, summary) = line.split_once("test result: ")?;
    let number = |what: &str| {
        let (before, _) = summary.split_once(what)?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some(Counts {
        passed: number(" passed;")?,
        failed: number(" failed;")?,
    })
}

/// Reads `test NAME ... ignored, REASON`; the name, unless another verb runs the test.
fn skipped(line: &str) -> Option<String> {
    let (name, ending) = line.strip_prefix("test ")?.split_once(" ... ")?;
    (ending.contains("ignored") && !ending.contains(ELSEWHERE)).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted_with_colours_too() {
        let line = "test result: \u{1b}[31mFAILED\u{1b}[0m. 17 passed; 2 failed; 1 ignored; \
                    0 measured; 3 filtered out; finished in 3.52s";
        assert_eq!(
            result(line),
            Some(Counts {
                passed: 17,
                failed: 2
            })
        );
    }

    #[test]
    fn what_is_written_at_the_end_is_what_is_read() {
        let line = result_line(17, 2, 1, Duration::from_millis(3520));
        assert!(line.starts_with("test result: FAILED. "));
        assert!(line.ends_with("finished in 3.52s"));
        let counts = Counts {
            passed: 17,
            failed: 2,
        };
        assert_eq!(result(&line), Some(counts));
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(result("test result_is_ok ... ok"), None);
        assert_eq!(result("running 18 tests"), None);
    }

    #[test]
    fn an_ignored_test_is_skipped_unless_another_verb_runs_it() {
        assert_eq!(
            skipped("test a::b ... ignored, takes long"),
            Some("a::b".to_owned())
        );
        assert_eq!(skipped("test a::b ... ignored"), Some("a::b".to_owned()));
        assert_eq!(
            skipped("test a::b ... ignored, for test guests: cargo xtask vm-test"),
            None
        );
        assert_eq!(skipped("test ignored_is_a_name ... ok"), None);
    }
}
