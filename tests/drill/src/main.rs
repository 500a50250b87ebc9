//! Tries to break what the agent promises, one promise a drill, and says how that went.
//!
//! Everything is real: the agent's process, namespaces, sockets, and whatever ends or floods them.

mod drills;
mod figures;
mod memory;
mod plan;

use std::{process::ExitCode, time::Instant};

use anyhow::{Result, bail};
use clap::Parser as _;

use self::{
    drills::{DRILLS, Drill},
    plan::Plan,
};

/// Tries to break what the agent promises.
#[derive(clap::Parser, Debug)]
struct Arguments {
    /// Which drill; all of them if none is named
    name: Vec<String>,
    /// Names the drills and what each tries to break
    #[arg(long)]
    list: bool,
    /// Where randomness starts: the same seed asks for the same steps [default: drawn, and printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long each drill goes on; each has a length of its own
    #[arg(long, value_name = "M")]
    minutes: Option<f64>,
    /// The form of a drill that continuous integration runs: fewer tenants, seconds
    #[arg(long)]
    short: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        for drill in DRILLS {
            println!("{:<12} {}", drill.name, drill.promise);
        }
        return Ok(());
    }
    let mut broken = Vec::new();
    for drill in chosen(&arguments.name)? {
        let plan = Plan::new(arguments.seed, arguments.minutes, arguments.short)?;
        if !hold(drill, &plan) {
            broken.push(drill.name);
        }
    }
    if !broken.is_empty() {
        bail!("broken: {}", broken.join(", "));
    }
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Drill>> {
    if names.is_empty() {
        return Ok(DRILLS.iter().collect());
    }
    let mut chosen = Vec::new();
    for name in names {
        match DRILLS.iter().find(|drill| drill.name == name) {
            Some(drill) => chosen.push(drill),
            None => bail!("there is no drill `{name}`: --list names them"),
        }
    }
    Ok(chosen)
}

/// Runs a drill, prints its figures last, and says whether the promise held.
fn hold(drill: &Drill, plan: &Plan) -> bool {
    println!("=== {} (seed {}): {}", drill.name, plan.seed, drill.promise);
    let start = Instant::now();
    match (drill.run)(plan) {
        Ok(figures) => {
            println!("{}", figures.table());
            for broken in figures.broken() {
                println!("BROKEN: {broken}");
            }
            let holds = figures.broken().is_empty();
            let word = if holds { "holds" } else { "BROKEN" };
            println!(
                "{} {word} ({:.1} s)",
                drill.name,
                start.elapsed().as_secs_f64()
            );
            holds
        }
        Err(error) => {
            println!("{} could not be run to its end: {error:#}", drill.name);
            false
        }
    }
}
