//! `cargo xtask demo`: one agent, several tenants with the same addresses, and who gets what.
//!
//! The agent is the real one, with its embedded upstream. Everything happens in namespaces made for
//! it, and is removed at the end, after a failure and after Ctrl-C too.

mod answer;
mod ask;
mod crowd;
mod signals;
mod stage;
mod steps;

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Result, bail, ensure};
use metadata_proxy_tests::{Node, agent::BINARY_VARIABLE};

use self::{
    signals::Signals,
    stage::{Scene, Stage},
    steps::Steps,
};
use crate::{
    build::{self, BuildArgs},
    setup::{self, Purpose},
    workspace::{is_root, root},
};

/// What to show.
#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Leaves everything up until Ctrl-C, and says what to try
    #[arg(long)]
    keep: bool,
    /// Builds quickly, for debugging, instead of optimised
    #[arg(long)]
    debug_build: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &DemoArgs) -> Result<()> {
    if !is_root() {
        bail!("the demo makes network namespaces and attaches programs: run it as root");
    }
    let mut steps = Steps::begin();
    setup::ensure(Purpose::Demo)?;
    steps.done("found what building and the demo need, or installed it");
    let binary = binary(args, &mut steps)?;

    // From here on a signal asks for the end instead of being it: there are things to remove.
    let signals = Signals::block()?;
    let node = Node::new()?;
    let directory = node.directory().to_owned();
    let shown = show(&node, &binary, args.keep, &signals, &mut steps);
    drop(node);
    ensure!(
        !directory.exists(),
        "{} could not be removed",
        directory.display()
    );
    let removed = "removed the namespaces, the cgroup, the bpffs and every file";
    match shown {
        Ok(()) => {
            steps.done(removed);
            println!("\nEvery one got its own answer, and nothing is left.");
            Ok(())
        }
        Err(error) => {
            steps.done(removed);
            Err(error)
        }
    }
}

/// Finds the agent: one that somebody names, or the one of this source.
fn binary(args: &DemoArgs, steps: &mut Steps) -> Result<PathBuf> {
    if let Some(named) = env::var_os(BINARY_VARIABLE).map(PathBuf::from) {
        let there = named.is_file();
        ensure!(there, "{BINARY_VARIABLE}: {} is no file", named.display());
        steps.done(&format!("{BINARY_VARIABLE} is {}", named.display()));
        return Ok(named);
    }
    let profile = if args.debug_build {
        BuildArgs::DEBUG
    } else {
        BuildArgs::default()
    };
    let built = build::build(profile)?.agent;
    steps.done(&format!("built {}", shown(&built)));
    Ok(built)
}

fn shown(path: &Path) -> String {
    path.strip_prefix(root())
        .unwrap_or(path)
        .display()
        .to_string()
}

fn show(
    node: &Node,
    binary: &Path,
    keep: bool,
    signals: &Signals,
    steps: &mut Steps,
) -> Result<()> {
    let scene = Scene::set(node, signals)?;
    steps.done(&scene.to_string());

    let mut stage = Stage::start(node, binary, scene, signals)?;
    steps.done(&stage.to_string());

    let answers = stage.ask_all(signals)?;
    steps.done(&format!("asked {} times for {}", answers.len(), ask::PATH));
    println!("\n{}\n", answer::table(&answers));
    answer::check(&answers).inspect_err(|_| stage.show_log())?;

    signals.check()?;
    let crowd = crowd::ask(stage.tenants()).inspect_err(|_| stage.show_log())?;
    steps.done(&crowd.to_string());

    let status = stage.cli(&["status"])?;
    steps.done("asked the agent: metadata-proxy status");
    println!("\n{status}");

    if keep {
        println!("{}", stage.what_to_try(node, binary)?);
        signals.wait()?;
        println!();
        steps.skip();
    }
    signals.check()?;
    let gone = stage.stop(node)?;
    steps.done(&gone);
    Ok(())
}
