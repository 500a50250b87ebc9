//! `cargo xtask drill`: tries to break what the agent promises.

use anyhow::{Result, bail};

use crate::{build, step, workspace::is_root};

/// The program with the drills, and its package.
const PROGRAM: &str = "metadata-proxy-drill";

/// Which drills, and how; what is named here is handed on.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct DrillArgs {
    /// Which drill; all of them if none is named
    pub(crate) name: Vec<String>,
    /// Names the drills and what each tries to break
    #[arg(long)]
    list: bool,
    /// Where randomness starts: the same seed asks for the same steps
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long each drill goes on; each has a length of its own
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// The form of a drill that continuous integration runs: fewer tenants, seconds
    #[arg(long)]
    pub(crate) short: bool,
}

/// Runs the verb.
pub(crate) fn run(args: &DrillArgs) -> Result<()> {
    if !args.list && !is_root() {
        bail!("drills make network namespaces and end processes of theirs: run them as root");
    }
    let (agent, mut command) = build::beside_agent(PROGRAM)?;
    command.env("METADATA_PROXY_BIN", &agent).args(&args.name);
    for (flag, is_given) in [("--list", args.list), ("--short", args.short)] {
        if is_given {
            command.arg(flag);
        }
    }
    if let Some(seed) = args.seed {
        command.arg("--seed").arg(seed.to_string());
    }
    if let Some(minutes) = args.minutes {
        command.arg("--minutes").arg(minutes.to_string());
    }
    step::run(&mut command)
}
