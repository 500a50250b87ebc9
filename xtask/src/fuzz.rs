//! `cargo xtask fuzz`: builds the fuzz targets and runs them.
//!
//! cargo-fuzz needs a nightly toolchain for its sanitizers. libFuzzer itself needs only LLVM's
//! coverage instrumentation, which any toolchain has as a pass, so that is what is asked for here;
//! the targets are laid out as cargo-fuzz expects them, for whoever has it.

use std::{env::consts::ARCH, fs, path::PathBuf, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

use crate::{
    setup::{self, Purpose},
    step::{self, seconds},
    workspace::{self, is_root},
};

/// Longest input, bytes: more than any of the targets tells apart.
const LONGEST: u32 = 8192;

/// What LLVM is to instrument: edges by counters, and what comparisons compare.
const INSTRUMENTATION: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // A pass over each unit sees only that unit's functions.
    "-Ccodegen-units=1",
];

/// The profile of `--short`.
pub(crate) const SHORT: &str = "short";

/// Which targets, and for how long.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct FuzzArgs {
    /// Which target; all of them if none is named
    target: Vec<String>,
    /// Names the targets
    #[arg(long)]
    list: bool,
    /// How long each goes on; 0 runs its committed corpus and nothing else
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Optimises less, so that it is built sooner: the form that continuous integration runs
    #[arg(long)]
    short: bool,
    /// Adds to the committed corpus what reaches new code, as few and short inputs as do it
    #[arg(long)]
    keep: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &FuzzArgs) -> Result<()> {
    let all = targets()?;
    if args.list {
        for target in all {
            println!("{target}");
        }
        return Ok(());
    }
    if let Some(unknown) = args.target.iter().find(|name| !all.contains(name)) {
        bail!("there is no target `{unknown}`: --list names them");
    }
    if !is_root() {
        bail!("some targets make a network namespace or load kernel programs: run as root");
    }
    setup::ensure(Purpose::Build)?;
    let profile = if args.short { SHORT } else { "release" };
    build(profile)?;
    let chosen = if args.target.is_empty() {
        &all
    } else {
        &args.target
    };
    let mut failed = Vec::new();
    for target in chosen {
        println!("=== {target}");
        let start = Instant::now();
        let program = || program(profile, target);
        let result =
            fuzz(target, args.seconds, program()).and_then(|()| keep(target, args.keep, program()));
        match result {
            Ok(()) => println!("    holds ({})", seconds(start.elapsed())),
            Err(error) => {
                eprintln!("{target}: {error:#}");
                failed.push(target.as_str());
            }
        }
    }
    if !failed.is_empty() {
        bail!(
            "found something: {}; the inputs are in fuzz/artifacts",
            failed.join(", ")
        );
    }
    Ok(())
}

fn root() -> PathBuf {
    workspace::root().join("fuzz")
}

fn triple() -> String {
    format!("{ARCH}-unknown-linux-gnu")
}

fn targets() -> Result<Vec<String>> {
    let directory = root().join("fuzz_targets");
    let mut names = fs::read_dir(&directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .map(|entry| {
            let path = entry.context("cannot list the targets")?.path();
            let name = path.file_stem().context("a target has no name")?;
            Ok(name.to_string_lossy().into_owned())
        })
        .collect::<Result<Vec<_>>>()?;
    names.sort_unstable();
    Ok(names)
}

fn build(profile: &str) -> Result<()> {
    step::run(cargo("build", profile).args(["--quiet", "--locked", "--bins"]))
}

/// A cargo command for the targets, so made that all of them share what is built.
pub(crate) fn cargo(verb: &str, profile: &str) -> Command {
    let mut command = workspace::cargo(verb);
    command
        .args(["--manifest-path", "fuzz/Cargo.toml", "--profile", profile])
        // With a target named, build scripts and macros are not instrumented.
        .args(["--target", &triple()])
        // The kernel programs are there already.
        .arg("--target-dir")
        .arg(workspace::target_dir())
        .env("CARGO_ENCODED_RUSTFLAGS", INSTRUMENTATION.join("\u{1f}"));
    command
}

fn program(profile: &str, target: &str) -> Command {
    let path = workspace::target_dir()
        .join(triple())
        .join(profile)
        .join(target);
    let mut command = Command::new(path);
    command.current_dir(root());
    command
}

/// What was found while fuzzing, beside what is committed.
fn found(target: &str) -> Result<PathBuf> {
    let directory = workspace::target_dir().join("fuzz-corpus").join(target);
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot create {}", directory.display()))?;
    Ok(directory)
}

fn fuzz(target: &str, seconds: u32, mut command: Command) -> Result<()> {
    let corpus = root().join("corpus").join(target);
    let artifacts = root().join("artifacts");
    fs::create_dir_all(&artifacts).context("cannot create fuzz/artifacts")?;
    command
        .arg(format!(
            "-artifact_prefix={}/{target}-",
            artifacts.display()
        ))
        .arg(format!("-max_len={LONGEST}"))
        .args([
            "-timeout=20",
            "-rss_limit_mb=1024",
            "-print_final_stats=1",
            "-verbosity=1",
        ]);
    let dictionary = root().join("dictionaries").join(format!("{target}.txt"));
    if dictionary.exists() {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    if seconds == 0 {
        command.arg("-runs=0").arg(corpus);
    } else {
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(found(target)?)
            .arg(corpus);
    }
    step::run(&mut command)
}

fn keep(target: &str, wanted: bool, mut program: Command) -> Result<()> {
    if !wanted {
        return Ok(());
    }
    let corpus = root().join("corpus").join(target);
    step::run(program.arg("-merge=1").arg(corpus).arg(found(target)?))
}
