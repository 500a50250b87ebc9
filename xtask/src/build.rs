//! `cargo xtask build`: the agent with its kernel programs inside, and the `haproxy` stand-in.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};

use crate::{
    setup::{self, Purpose},
    step::{self, seconds},
    workspace,
};

/// The program that stands in for Neutron's haproxy. Kept in a folder of its own, which can be put
/// first on PATH.
const STAND_IN: &str = "haproxy";

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
}

/// What was built.
pub(crate) struct Built {
    /// The agent.
    pub(crate) agent: PathBuf,
}

/// Runs the verb.
pub(crate) fn run(args: BuildArgs) -> Result<()> {
    let start = Instant::now();
    let built = build(args)?;
    println!("{} ({})", built.agent.display(), seconds(start.elapsed()));
    Ok(())
}

/// Builds everything that is installed on a node.
pub(crate) fn build(args: BuildArgs) -> Result<Built> {
    setup::ensure(Purpose::Build)?;
    let profile = if args.debug { "dev" } else { "release" };
    step::run(workspace::cargo("build").args([
        "--package",
        "metadata-proxy",
        "--bins",
        "--profile",
        profile,
    ]))?;
    let target = workspace::target_dir();
    let directory = target.join(if args.debug { "debug" } else { "release" });
    let stand_in = directory.join(STAND_IN);
    if stand_in.exists() {
        copy_if_newer(&stand_in, &target.join("standin"))?;
    }
    Ok(Built {
        agent: directory.join("metadata-proxy"),
    })
}

fn copy_if_newer(from: &Path, directory: &Path) -> Result<()> {
    let name = from.file_name().context("the stand-in has no name")?;
    let to = directory.join(name);
    let modified = |path: &Path| fs::metadata(path).and_then(|its| its.modified()).ok();
    if modified(&to) > modified(from) {
        return Ok(());
    }
    fs::create_dir_all(directory)
        .and_then(|()| {
            // Replaced, not overwritten: a running program cannot be written to.
            let unfinished = to.with_extension("new");
            fs::copy(from, &unfinished)?;
            fs::rename(unfinished, &to)
        })
        .with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))
}
