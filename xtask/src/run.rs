//! `cargo xtask run`: the agent, built and then run in this process's place.

use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    build::{self, BuildArgs},
    workspace::is_root,
};

/// What to run.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    build: BuildArgs,
    /// Arguments of `metadata-proxy run`
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Runs the verb; returns only on failure.
pub(crate) fn run(args: &RunArgs) -> Result<()> {
    let built = build::build(args.build)?;
    if !is_root() {
        bail!(
            "the agent needs root; run as root: {} run",
            built.agent.display()
        );
    }
    let error = Command::new(&built.agent)
        .arg("run")
        .args(&args.arguments)
        .exec();
    Err(error).with_context(|| format!("cannot run {}", built.agent.display()))
}
