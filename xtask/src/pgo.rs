//! `cargo xtask pgo`: the profile that the agent is optimised by.
//!
//! What was seen of the agent at work tells the compiler what to inline, and which code to lay side by
//! side: a request takes a tenth to a sixth less CPU time. The profile is kept beside the agent's source, so that
//! whoever builds needs nothing for it. It is made anew here, and is of use for as long as the code is
//! much the same: a changed function is compiled without it, and no binary is ever wrong for it.

use std::{
    env::{self, consts::ARCH},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail, ensure};
use object::{Object as _, ObjectSection as _};
use serde_json::{Value, json};

use crate::{
    build::{self, BuildArgs},
    setup, step,
    workspace::{self, is_root},
};

/// Where the profile is kept, below the workspace's root.
const FOLDER: &str = "metadata-proxy/pgo";
/// The program that gives the agent its work, and its package.
const TRAINER: &str = "metadata-proxy-bench";
/// Where the linker gathers what the profile says is run much.
const HOT: &str = ".text.hot";
/// Keeps that apart from other code.
const KEEP_HOT_APART: &str = "-Clink-arg=-Wl,-z,keep-text-section-prefix";
/// Says nothing of each function that has changed since: `--check` does, where it matters.
const BE_QUIET: &str = "-Cllvm-args=-no-pgo-warn-mismatch";
/// Share of the code that was marked when the profile was made, below which it is made anew.
const LEAST_SHARE: f64 = 0.8;

/// Flags of the compiler in the environment, before all others; and what is between them.
const ENCODED_FLAGS: &str = "CARGO_ENCODED_RUSTFLAGS";
const SEPARATOR: &str = "\u{1f}";

/// What to do with the profile.
#[derive(Debug, clap::Args)]
pub(crate) struct PgoArgs {
    /// Makes nothing: fails if the profile in the repository does not fit the code any more
    #[arg(long)]
    check: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &PgoArgs) -> Result<()> {
    if args.check {
        return check();
    }
    if !is_root() {
        bail!("the agent is watched at work in network namespaces: run as root");
    }
    let merger = setup::profile_merger()?;
    let folder = workspace::target_dir().join("pgo");
    let raw = folder.join("raw");
    remove(&raw)?;
    let agent = build_instrumented(&folder, &raw)?;
    let (_, mut trainer) = build::beside_agent(TRAINER)?;
    // Of what was built, only the agent is of interest.
    remove(&raw)?;
    step::run(
        trainer
            .arg("--agent")
            .arg(&agent)
            .arg("--docs")
            .arg(&folder)
            .args(["--only", "training"]),
    )?;
    merge(&merger, &raw)?;
    let path = record_path();
    // Without it nothing is compared with the profile that was.
    remove(&path)?;
    let agent = build::build(BuildArgs::RELEASE)?.agent;
    let hot = hot_bytes(&agent)?;
    ensure!(
        hot > 0,
        "the profile was made, and marks nothing in {}",
        agent.display()
    );
    let record = json!({ "rustc": rustc_version()?, "hot_bytes": hot });
    fs::write(&path, format!("{record:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {hot} bytes of code are run much", profile().display());
    Ok(())
}

/// Has cargo use the profile, in every optimised build; nothing where there is none for this machine.
pub(crate) fn optimise(command: &mut Command) -> &mut Command {
    let profile = profile();
    if !profile.exists() {
        return command;
    }
    let use_it = format!("-Cprofile-use={}", profile.display());
    add_flags(command, &[&use_it, KEEP_HOT_APART, BE_QUIET])
}

/// Says so if an agent that was built is not optimised as it could be.
pub(crate) fn warn_if_stale(agent: &Path) {
    if record_path().exists()
        && let Err(error) = fits(agent)
    {
        eprintln!("warning: {error:#}; the agent works, and takes more CPU time");
    }
}

/// Fails if the profile is of little use.
fn check() -> Result<()> {
    ensure!(
        profile().exists(),
        "there is no profile for {ARCH}: `cargo xtask pgo` makes one"
    );
    let agent = build::build(BuildArgs::RELEASE)?.agent;
    println!(
        "{:.0} % of the marked code is marked",
        fits(&agent)? * 100.0
    );
    Ok(())
}

/// How much of what was marked as run much when the profile was made is so in this agent, as a share.
fn fits(agent: &Path) -> Result<f64> {
    let path = record_path();
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let record: Value =
        serde_json::from_str(&text).with_context(|| format!("{} is broken", path.display()))?;
    let then = record["hot_bytes"]
        .as_f64()
        .with_context(|| format!("{} has no number `hot_bytes`", path.display()))?;
    let share = share(hot_bytes(agent)?, then);
    if share < LEAST_SHARE {
        bail!(
            "the profile fits {:.0} % of the code it was made for (of rustc {}, this is {}): run `cargo xtask pgo`",
            share * 100.0,
            record["rustc"].as_str().unwrap_or("unknown"),
            rustc_version()?,
        );
    }
    Ok(share)
}

#[expect(clippy::cast_precision_loss, reason = "code is far below 2^52 bytes")]
fn share(now: u64, then: f64) -> f64 {
    now as f64 / then
}

/// Bytes of the code that a program's profile says is run much.
fn hot_bytes(program: &Path) -> Result<u64> {
    let bytes = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    let file = object::File::parse(bytes.as_slice())
        .with_context(|| format!("{} is no program", program.display()))?;
    Ok(file.section_by_name(HOT).map_or(0, |hot| hot.size()))
}

/// Builds an agent that counts what it does, in a folder of its own.
fn build_instrumented(folder: &Path, raw: &Path) -> Result<PathBuf> {
    let count = format!("-Cprofile-generate={}", raw.display());
    step::run(
        add_flags(&mut workspace::cargo("build"), &[&count])
            .args(["--package", "metadata-proxy", "--release"])
            .args(["--bin", "metadata-proxy"])
            .env("CARGO_TARGET_DIR", folder),
    )?;
    Ok(folder.join("release/metadata-proxy"))
}

/// Makes the profile of what was counted.
fn merge(merger: &Path, raw: &Path) -> Result<()> {
    let profile = profile();
    let folder = workspace::root().join(FOLDER);
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let unfinished = profile.with_extension("new");
    step::run(
        Command::new(merger)
            .args(["merge", "--sparse", "--output"])
            .arg(&unfinished)
            .arg(raw),
    )?;
    fs::rename(&unfinished, &profile)
        .with_context(|| format!("cannot replace {}", profile.display()))
}

/// Adds flags of the compiler, for host and target alike: with a target named, symbols, by which the
/// profile knows functions, would have other names.
fn add_flags<'a>(command: &'a mut Command, ours: &[&str]) -> &'a mut Command {
    match flags_of_environment() {
        // They would hold instead of the configuration's.
        Some(theirs) => command.env(
            ENCODED_FLAGS,
            [&[theirs.as_str()], ours].concat().join(SEPARATOR),
        ),
        // A TOML array of strings is written as Rust's.
        None => command.args(["--config".to_owned(), format!("build.rustflags={ours:?}")]),
    }
}

/// Flags that whoever builds has set, as cargo encodes them.
fn flags_of_environment() -> Option<String> {
    let words = |flags: String| flags.split_whitespace().collect::<Vec<_>>().join(SEPARATOR);
    env::var(ENCODED_FLAGS)
        .or_else(|_| env::var("RUSTFLAGS").map(words))
        .ok()
        .filter(|flags| !flags.is_empty())
}

fn profile() -> PathBuf {
    kept("profdata")
}

fn record_path() -> PathBuf {
    kept("json")
}

fn kept(extension: &str) -> PathBuf {
    let folder = workspace::root().join(FOLDER);
    folder.join(ARCH).with_extension(extension)
}

/// Removes a file or a folder, if it is there.
fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() {
        fs::remove_dir_all(path)
    } else if path.exists() {
        fs::remove_file(path)
    } else {
        return Ok(());
    };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Such as `1.95.0`.
fn rustc_version() -> Result<String> {
    let told = rustc(&["--version"])?;
    let version = told.split(' ').nth(1).context("rustc has no version")?;
    Ok(version.to_owned())
}

/// What the compiler says.
pub(crate) fn rustc(arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("rustc");
    command.args(arguments).current_dir(workspace::root());
    let output = command.output().context("cannot start rustc")?;
    ensure!(
        output.status.success(),
        "`{}` failed ({})",
        step::shown(&command),
        output.status
    );
    String::from_utf8(output.stdout).context("rustc does not speak UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_added_to_those_of_whoever_builds() {
        let mut command = Command::new("cargo");
        add_flags(&mut command, &["-Ca=/b c", "-Cd"]);
        let told = |command: &Command| -> Vec<String> {
            let values = command.get_envs().filter_map(|(_, value)| value);
            let words = values.chain(command.get_args());
            words
                .map(|word| word.to_string_lossy().into_owned())
                .collect()
        };
        let expected = match flags_of_environment() {
            None => vec![
                "--config".to_owned(),
                r#"build.rustflags=["-Ca=/b c", "-Cd"]"#.to_owned(),
            ],
            Some(theirs) => vec![format!("{theirs}\u{1f}-Ca=/b c\u{1f}-Cd")],
        };
        assert_eq!(told(&command), expected);
    }

    #[test]
    fn a_program_without_a_profile_has_no_hot_code() {
        let own = std::env::current_exe().unwrap();
        assert_eq!(hot_bytes(&own).unwrap(), 0);
        assert!(hot_bytes(Path::new("/nonexistent")).is_err());
    }
}
