//! `cargo xtask test`: all tests, and how many passed.
//!
//! A test that needs root and has none fails the run, and so does one that was skipped.

use std::{
    io::{BufRead as _, BufReader, IsTerminal as _, Write as _, stdout},
    ops::AddAssign,
    process::{Command, Stdio},
    time::Instant,
};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, BuildArgs},
    setup::{self, Purpose},
    step::seconds,
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

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    passed: u64,
    failed: u64,
    ignored: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
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
        // The tests start these as processes; cargo builds them for nobody but us.
        build::build(BuildArgs::DEBUG)?;
    }

    let mut command = workspace::cargo("test");
    command.arg("--no-fail-fast");
    if args.root {
        command.args(["--package", ROOT_SUITE]);
    } else {
        command.arg("--workspace");
    }
    if args.unit {
        command.args(["--exclude", ROOT_SUITE]);
    }
    if let Some(filter) = &args.filter {
        command.args(["--", filter]);
    }
    let (counts, succeeded) = count(&mut command)?;
    println!(
        "\n{} passed, {} failed ({})",
        counts.passed,
        counts.failed,
        seconds(start.elapsed())
    );
    if !succeeded || counts.failed > 0 {
        bail!("tests failed");
    }
    if counts.ignored > 0 {
        bail!("{} tests were skipped", counts.ignored);
    }
    if counts.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

/// Runs a test command, shows its output, and counts by the lines that say how each program ended.
fn count(command: &mut Command) -> Result<(Counts, bool)> {
    if stdout().is_terminal() {
        command.env("CARGO_TERM_COLOR", "always");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let output = child.stdout.take().context("cargo test has no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("cannot read what cargo test says")?;
        let mut shown = stdout().lock();
        shown
            .write_all(&line)
            .and_then(|()| shown.write_all(b"\n"))
            .context("cannot print")?;
        if let Some(more) = parse(&String::from_utf8_lossy(&line)) {
            counts += more;
        }
    }
    let status = child.wait().context("cargo test was lost")?;
    Ok((counts, status.success()))
}

/// Reads `test result: ok. 18 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; ...`.
fn parse(line: &str) -> Option<Counts> {
    let (_, summary) = line.split_once("test result: ")?;
    let number = |what: &str| {
        let (before, _) = summary.split_once(what)?;
        before.trim_end().rsplit(' ').next()?.parse().ok()
    };
    Some(Counts {
        passed: number(" passed;")?,
        failed: number(" failed;")?,
        ignored: number(" ignored;")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_line_is_counted_with_colours_too() {
        let line = "test result: \u{1b}[31mFAILED\u{1b}[0m. 17 passed; 2 failed; 1 ignored; \
                    0 measured; 3 filtered out; finished in 3.52s";
        assert_eq!(
            parse(line),
            Some(Counts {
                passed: 17,
                failed: 2,
                ignored: 1
            })
        );
    }

    #[test]
    fn other_lines_are_not_counted() {
        assert_eq!(parse("test result_is_ok ... ok"), None);
        assert_eq!(parse("running 18 tests"), None);
    }
}
