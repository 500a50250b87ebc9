//! Measures metadata-proxy beside the haproxy that Neutron starts for each tenant.
//!
//! Both run at the same time in namespaces made alike, and are measured in turn, again and again:
//! what the machine does meanwhile befalls both. Every number is a median of repeats, with its
//! spread. CPU time is the kernel's account of each proxy's cgroup, memory is PSS.

mod account;
mod crowd;
mod document;
mod load;
mod machine;
mod plots;
mod progress;
mod proxies;
mod report;
mod sink;
mod stages;
mod upstream;

use std::{path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail};
use clap::Parser as _;

use self::{
    account::Machine,
    progress::Progress,
    report::Report,
    stages::{Lab, Row},
};

/// Measures metadata-proxy beside haproxy.
#[derive(clap::Parser, Debug)]
pub(crate) struct Arguments {
    /// The agent's binary, built optimised
    #[arg(long)]
    agent: PathBuf,
    /// Folder that benchmarks.md and its plots are written to, after a full run
    #[arg(long)]
    docs: PathBuf,
    /// Fewer repeats and tenants: a look, not a result
    #[arg(long)]
    quick: bool,
    /// Writes the results to this file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Repeats of what is measured in turn
    #[arg(long, value_name = "COUNT", default_value_t = 7)]
    repeats: usize,
    /// Tenants at most
    #[arg(long, value_name = "COUNT", default_value_t = 5000)]
    tenants: usize,
    /// Bytes of an answer's body; the bars are for answers of the default size, and others are not written to the
    /// folder
    #[arg(long, value_name = "BYTES", default_value_t = upstream::BODY, value_parser = body_size)]
    answer: usize,
    /// The agent's engine, as `steering.engine` has it; what is measured with it is not written to the folder
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Compares the agent with this other build of it, in pairs, and measures nothing else
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["only", "json"])]
    against: Option<PathBuf>,
    /// Measures only these rows of the table
    #[arg(long, value_name = "NAME", value_enum)]
    only: Vec<Row>,
}

impl Arguments {
    /// Whether a row is to be measured.
    fn wants(&self, row: Row) -> bool {
        let is_measured = !matches!(row, Row::Profile | Row::Training);
        (self.only.is_empty() && is_measured) || self.only.contains(&row)
    }
}

/// The tenant's UUID begins every answer.
fn body_size(word: &str) -> Result<usize, String> {
    let sizes = 36..=upstream::LARGEST_BODY;
    let size = word
        .parse::<usize>()
        .ok()
        .filter(|size| sizes.contains(size));
    size.ok_or_else(|| format!("must be a number from {} to {}", sizes.start(), sizes.end()))
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(2),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Measures, and says whether every bar holds.
fn run(arguments: &Arguments) -> Result<bool> {
    let stages = stages::chosen(arguments);
    if stages.is_empty() {
        bail!("nothing to measure");
    }
    raise_file_limit()?;
    let start = Instant::now();
    let machine = Machine::now()?;
    let seconds = stages.iter().map(|stage| stage.seconds(arguments)).sum();
    let progress = Progress::start(seconds);
    let mut report = Report::default();
    for stage in stages {
        let lab = Lab::new(arguments, &progress)?;
        stage
            .run(&lab, &mut report)
            .with_context(|| format!("while measuring {}", stage.name()))?;
    }
    if arguments.against.is_some() {
        return Ok(true);
    }
    progress.finish();
    let (busy, stolen) = Machine::now()?.shares_since(machine);
    println!("{}", report.table());
    println!(
        "{} of {} bars hold; {:.0} s; the machine was busy for {:.0} % of the time, its host took {:.1} %",
        report.held(),
        report.barred(),
        start.elapsed().as_secs_f64(),
        busy * 100.0,
        stolen * 100.0,
    );
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    let is_whole = arguments.only.is_empty() && !arguments.quick;
    let is_usual = arguments.engine.is_none() && arguments.answer == upstream::BODY;
    if is_whole && is_usual {
        document::write(&arguments.docs, &report, start.elapsed())?;
    }
    Ok(report.held() == report.barred())
}

/// Two descriptors for each namespace, and the connections.
fn raise_file_limit() -> Result<()> {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read a limit")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("cannot raise the limit of files")
}
