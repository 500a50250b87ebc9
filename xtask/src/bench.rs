//! `cargo xtask bench`: measures the agent beside the haproxy that Neutron starts for each tenant.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    build, step,
    workspace::{self, is_root},
};

/// The program that measures, and its package.
const PROGRAM: &str = "metadata-proxy-bench";

/// How it ends when all went well and a bar does not hold.
const BAR_FAILED: i32 = 2;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Fewer repeats and tenants: a look within minutes, not a result
    #[arg(long)]
    quick: bool,
    /// Writes the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repeats of what is measured in turn, 7 if not said
    #[arg(long, value_name = "COUNT")]
    repeats: Option<usize>,
    /// Tenants at most, 5,000 if not said
    #[arg(long, value_name = "COUNT")]
    tenants: Option<usize>,
    /// Bytes of an answer, 1,024 if not said, which is what the bars and docs/benchmarks.md are of
    #[arg(long, value_name = "BYTES")]
    answer: Option<usize>,
    /// Has the agent use this engine: tc, sk-lookup or bind; docs/benchmarks.md is of the default one
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Measures only this row: memory, start, new-tenant, cpu, throughput, latency, cross-check,
    /// limit, kernel, idle, scale or profile (flame graphs, only if named); can be given more than once
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Compares the agent with another build of it, in pairs, and measures nothing else: what a change
    /// of the code is worth
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["only", "json"])]
    against: Option<PathBuf>,
}

/// Runs the verb; a full run writes `docs/benchmarks.md`.
pub(crate) fn run(args: &BenchArgs) -> Result<()> {
    if !is_root() {
        bail!("the benchmark makes network namespaces and attaches programs: run it as root");
    }
    // Load generator and upstream share the machine with what they measure: optimised too.
    let (agent, mut command) = build::beside_agent(PROGRAM)?;
    command
        .arg("--agent")
        .arg(&agent)
        .arg("--docs")
        .arg(workspace::root().join("docs"));
    if args.quick {
        command.arg("--quick");
    }
    if let Some(path) = &args.json {
        command.arg("--json").arg(path);
    }
    let counts = [
        ("--answer", args.answer),
        ("--repeats", args.repeats),
        ("--tenants", args.tenants),
    ];
    for (name, count) in counts {
        if let Some(count) = count {
            command.arg(name).arg(count.to_string());
        }
    }
    if let Some(name) = &args.engine {
        command.args(["--engine", name]);
    }
    for name in &args.only {
        command.args(["--only", name]);
    }
    if let Some(other) = &args.against {
        command.arg("--against").arg(other);
    }
    let status = step::status(&mut command)?;
    match status.code() {
        Some(0) => Ok(()),
        Some(BAR_FAILED) => bail!("not every bar holds"),
        _ => bail!("`{}` failed ({status})", step::shown(&command)),
    }
}
