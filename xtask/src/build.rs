//! `cargo xtask build`: the agent with its kernel programs inside, and the `haproxy` stand-in.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    pgo,
    setup::{self, Purpose},
    step::{self, seconds},
    workspace,
};

/// The program that stands in for Neutron's haproxy. Kept in a folder of its own, which can be put
/// first on PATH.
const STAND_IN: &str = "haproxy";

/// There is one for every tenant, so what it costs counts: the dynamic linker's relocations alone
/// would double its memory.
const STAND_IN_FLAGS: [&str; 4] = [
    "-C",
    "target-feature=+crt-static",
    "-C",
    "relocation-model=static",
];

/// How to build.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(crate) struct BuildArgs {
    /// Builds optimised (the default)
    #[arg(long, conflicts_with = "debug")]
    release: bool,
    /// Builds quickly, for debugging
    #[arg(long)]
    debug: bool,
}

impl BuildArgs {
    /// The profile the tests are built with: nothing compiles twice.
    pub(crate) const DEBUG: Self = Self {
        release: false,
        debug: true,
    };

    /// As it is installed.
    pub(crate) const RELEASE: Self = Self {
        release: true,
        debug: false,
    };

    /// Where cargo puts it.
    fn directory(self) -> PathBuf {
        workspace::target_dir().join(if self.debug { "debug" } else { "release" })
    }
}

/// What was built.
pub(crate) struct Built {
    /// The agent.
    pub(crate) agent: PathBuf,
    /// The program that stands in for haproxy.
    pub(crate) stand_in: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(args: BuildArgs) -> Result<()> {
    let start = Instant::now();
    let built = build(args)?;
    println!("{}\n{}", built.agent.display(), built.stand_in.display());
    println!("built in {}", seconds(start.elapsed()));
    Ok(())
}

/// Builds the agent as it is installed, and a program of the workspace that makes use of it, optimised
/// too; sets up what that needs. The agent's path, and the program to run.
pub(crate) fn beside_agent(program: &str) -> Result<(PathBuf, Command)> {
    setup::ensure(Purpose::Test)?;
    let agent = build(BuildArgs::default())?.agent;
    // What both are made of is built once.
    step::run(pgo::optimise(&mut workspace::cargo("build")).args([
        "--package",
        program,
        "--release",
    ]))?;
    let program = workspace::target_dir().join("release").join(program);
    Ok((agent, Command::new(program)))
}

/// Builds everything that is installed on a node.
pub(crate) fn build(args: BuildArgs) -> Result<Built> {
    setup::ensure(Purpose::Build)?;
    let package = ["--package", "metadata-proxy"];
    if args.debug {
        // As `cargo test` builds them for the tests that start them.
        step::run(workspace::cargo("build").args(package).arg("--bins"))?;
    } else {
        let agent = ["--release", "--bin", "metadata-proxy"];
        step::run(
            pgo::optimise(&mut workspace::cargo("build"))
                .args(package)
                .args(agent),
        )?;
        let stand_in = ["--release", "--bin", STAND_IN, "--"];
        step::run(
            pgo::optimise(&mut workspace::cargo("rustc"))
                .args(package)
                .args(stand_in)
                .args(STAND_IN_FLAGS),
        )?;
    }
    let stand_in = place_stand_in(args)?;
    let agent = args.directory().join("metadata-proxy");
    if !args.debug {
        pgo::warn_if_stale(&agent);
    }
    Ok(Built { agent, stand_in })
}

/// Puts the stand-in that was built where it can be put first on PATH.
pub(crate) fn place_stand_in(args: BuildArgs) -> Result<PathBuf> {
    let stand_in = workspace::target_dir().join("standin").join(STAND_IN);
    replace(&args.directory().join(STAND_IN), &stand_in)?;
    Ok(stand_in)
}

/// Replaces the file, since a running program cannot be written to.
fn replace(from: &Path, to: &Path) -> Result<()> {
    let unfinished = to.with_extension("new");
    to.parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::copy(from, &unfinished))
        .and_then(|_| fs::rename(&unfinished, to))
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
